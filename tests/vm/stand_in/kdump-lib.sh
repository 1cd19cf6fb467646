#!/bin/bash
# Stands in for kdump-utils' library, v1.0.61; kdump-lib.sh:N is line N of that.

KDUMP_CONFIG_FILE=/etc/kdump.conf

is_fadump_capable() { return 1; }

# kdump-lib.sh:343-363
check_kdump_feasibility()
{
	[[ -e /sys/kernel/kexec_crash_loaded && $(</sys/kernel/kexec_crash_size) -gt 0 ]]
}

# kdump-lib.sh:366-391
is_kernel_loaded() { [[ $(</sys/kernel/kexec_crash_loaded) -eq 1 ]]; }

# kdump-lib.sh:465-497: Secure Boot adds -s.
prepare_kexec_args() { echo "$1"; }

# kdump-lib.sh:585-654
prepare_kdump_bootinfo()
{
	: "${KDUMP_KERNELVER:=$(uname -r)}"
	KDUMP_KERNEL=${KDUMP_BOOTDIR:-/boot}/$KDUMP_IMG-$KDUMP_KERNELVER$KDUMP_IMG_EXT
	if ! [[ -e $KDUMP_KERNEL ]]; then
		derror "there is no $KDUMP_KERNEL"
		return 1
	fi
	KDUMP_BOOTDIR=$(dirname "$KDUMP_KERNEL")
	DEFAULT_INITRD=$KDUMP_BOOTDIR/initramfs-$KDUMP_KERNELVER.img
	# kdump-lib.sh:643: whoever must not write to /boot gets another answer, and a
	# directory that is made in passing. A read-only mount counts, also one of a sandbox.
	if [[ ! -f $DEFAULT_INITRD ]] || [[ ! -w $KDUMP_BOOTDIR ]]; then
		mkdir -p /var/lib/kdump
		KDUMP_INITRD=/var/lib/kdump/initramfs-${KDUMP_KERNELVER}kdump.img
	else
		KDUMP_INITRD=${DEFAULT_INITRD/%.img/kdump.img}
	fi
}

# kdump-lib.sh:675-694: one word a line, quotes taken off by xargs and put on again
# around white space; "name=" without a value is left out.
_cmdline_parse()
{
	local opt val
	while read -r opt; do
		val=""
		if [[ $opt == *=* ]]; then
			val=${opt#*=} opt=${opt%%=*}
			[[ $val ]] || continue
			[[ $val =~ [[:space:]] ]] && val="\"$val\""
		fi
		echo "$opt $val"
	done <<<"$(echo "$1" | xargs -n 1 echo)"
}

# kdump-lib.sh:698-786
prepare_cmdline()
{
	local out opt val
	local -A gone=([crashkernel]=1 [panic_on_warn]=1 [root]=1)
	while read -r opt val; do
		[[ $opt ]] && gone[$opt]=1
	done <<<"$(_cmdline_parse "$2")"
	while read -r opt val; do
		[[ $opt && ! ${gone[$opt]} ]] && out+="$opt${val:+=$val} "
	done <<<"$(_cmdline_parse "${1:-$(</proc/cmdline)}")"
	out+="$3 disable_cpu_apicid=0 rd.systemd.gpt_auto=no "
	# kdump-lib.sh:781: who traces kdumpctl loads another command line.
	shopt -q -o xtrace && out+="rd.debug "
	echo "$out" | sed -e 's/ \+/ /g' -e 's/^ //' -e 's/ $//'
}

# kdump-lib.sh:1130-1137: one UUID a line; this disk has no LUKS.
get_all_kdump_crypt_dev() { :; }
