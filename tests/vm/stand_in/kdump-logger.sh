# Stands in for kdump-utils' logger: everything from info up goes to standard error.
dlog_init() { :; }
ddebug() { :; }
dinfo() { echo "kdump: $*" >&2; }
dwarn() { echo "kdump: $*" >&2; }
derror() { echo "kdump: $*" >&2; }
