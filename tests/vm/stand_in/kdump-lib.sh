# Stands in for kdump-utils' library: the functions that kdumphpd asks, by name, arguments
# and what they set. The image is the rig's own kernel and initramfs.

prepare_kdump_bootinfo()
{
	KDUMP_KERNELVER=${KDUMP_KERNELVER:-$(uname -r)}
	KDUMP_KERNEL=/boot/vmlinuz-$KDUMP_KERNELVER
	KDUMP_INITRD=/boot/capture.img
	[ -f "$KDUMP_KERNEL" ]
}

prepare_cmdline()
{
	local word
	for word in ${1:-$(cat /proc/cmdline)}; do
		case " $2 " in *" ${word%%=*} "*) ;; *) printf '%s ' "$word" ;; esac
	done
	echo "$3"
}

prepare_kexec_args() { echo "$1"; }
is_fadump_capable() { return 1; }
