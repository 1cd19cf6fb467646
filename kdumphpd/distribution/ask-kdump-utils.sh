# Asks kdump-utils' library what kdumpctl would pass to kexec; see kdump_utils.py.
# bash reads this with: the file for the answer, the file for messages, sysconfig, the
# library's directory. The answer is NAME=value strings, each ended by a zero byte.

# One that prints for ever ends by itself: a MiB is the largest file it may write.
ulimit -f 1024
exec {_kdumphpd_fd}>"$1" >"$2" 2>&1 </dev/null
_kdumphpd_sysconfig=$3 _kdumphpd_lib=$4
set --
_kdumphpd_at() { printf 'step=%s\0' "$1" >&"$_kdumphpd_fd"; }

# kdumpctl's own initial values. Its names stay free of ours.
KDUMP_KERNELVER="" KDUMP_KERNEL="" KEXEC_ARGS="" KDUMP_COMMANDLINE=""
DEFAULT_INITRD="" KDUMP_INITRD="" TARGET_INITRD=""
KDUMP_COMMANDLINE_REMOVE="hugepages hugepagesz slub_debug"

if [[ -f $_kdumphpd_sysconfig ]]; then
    _kdumphpd_at syntax
    "$BASH" -n "$_kdumphpd_sysconfig" || exit 1
    _kdumphpd_at sysconfig
    . "$_kdumphpd_sysconfig"
fi
_kdumphpd_configured=$KDUMP_KERNELVER

_kdumphpd_at library
: "${dracutbasedir:=/usr/lib/dracut}"
[[ -f $dracutbasedir/dracut-functions.sh ]] && . "$dracutbasedir/dracut-functions.sh"
. "$_kdumphpd_lib/kdump-lib.sh"
if [[ -f $_kdumphpd_lib/kdump-logger.sh ]]; then
    . "$_kdumphpd_lib/kdump-logger.sh"
    dlog_init
fi

for _kdumphpd_function in prepare_kdump_bootinfo prepare_cmdline; do
    _kdumphpd_at "function $_kdumphpd_function"
    declare -F "$_kdumphpd_function" >/dev/null || exit 1
done

_kdumphpd_at fadump
if declare -F is_fadump_capable >/dev/null && is_fadump_capable; then
    exit 1
fi

_kdumphpd_at prepare_kdump_bootinfo
prepare_kdump_bootinfo || exit 1

_kdumphpd_at prepare_cmdline
_kdumphpd_line=$(prepare_cmdline "$KDUMP_COMMANDLINE" "$KDUMP_COMMANDLINE_REMOVE" \
    "$KDUMP_COMMANDLINE_APPEND") || exit 1

_kdumphpd_at prepare_kexec_args
_kdumphpd_args=$KEXEC_ARGS
if declare -F prepare_kexec_args >/dev/null; then
    _kdumphpd_args=$(prepare_kexec_args "$KEXEC_ARGS") || exit 1
fi

_kdumphpd_at get_all_kdump_crypt_dev
_kdumphpd_luks=""
if declare -F get_all_kdump_crypt_dev >/dev/null; then
    _kdumphpd_luks=$(get_all_kdump_crypt_dev)
fi

printf '%s\0' "kernel=$KDUMP_KERNEL" "initrd=$KDUMP_INITRD" "command_line=$_kdumphpd_line" \
    "kexec_args=$_kdumphpd_args" "luks=$_kdumphpd_luks" "release=$KDUMP_KERNELVER" \
    "configured_release=$_kdumphpd_configured" "configured_line=$KDUMP_COMMANDLINE" \
    "step=done" >&"$_kdumphpd_fd"
