"""What is loaded: kernel, initrd, boot_params, purgatory and their places."""
