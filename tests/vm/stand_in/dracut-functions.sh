# Stands in for dracut's functions, which kdumpctl sources; it is bash, not sh, and sets
# names of its own in whoever sources it.
strstr() { [[ $1 == *"$2"* ]]; }
