#!/bin/bash
# Stands in for what dracut's module 99earlykdump runs in the initramfs, where it comes
# long before kdump.service (early-kdump.sh:35-69): the same kernel, the same command
# line, but the initrd that was there when the system's initramfs was built.
. /etc/sysconfig/kdump
. /lib/kdump/kdump-lib.sh
. /lib/kdump/kdump-logger.sh
is_kernel_loaded kdump && exit 0
line=$(prepare_cmdline "$KDUMP_COMMANDLINE" "$KDUMP_COMMANDLINE_REMOVE" "$KDUMP_COMMANDLINE_APPEND")
/sbin/kexec $(prepare_kexec_args "$KEXEC_ARGS") -p --command-line="$line" \
	--initrd=/boot/initramfs-earlykdump /boot/kernel-earlykdump
