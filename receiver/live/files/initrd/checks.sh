# Functions of the first stage, for busybox sh. Each takes the files that it reads as arguments, so that tests call it with
# files of their own. A check that fails sets $reason, a message of receiver/live/messages.py, and returns 1.

busybox=${BUSYBOX:-/bin/busybox}

# Processors since about 2009 have these; numpy's code needs them (x86-64-v2). By their names in /proc/cpuinfo.
needed_flags="cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2"

# Memory besides the live system: kernel, agent and its buffers. The compressed root filesystem and the firmware count
# twice, because the boot loader's copy is freed only when the kernel has unpacked it.
memory_base_mb=160
memory_mb_min=320

# say TEXT...: one line on every console, screen and serial
say() {
    for console in $(read_consoles); do
        echo "diskcast: $*" > "/dev/$console"
    done 2> /dev/null
}

read_consoles() {
    $busybox cat /sys/class/tty/console/active 2> /dev/null || echo console
}

# check_processor CPUINFO
check_processor() {
    flags=$($busybox sed -n 's/^flags[[:space:]]*: //p' "$1" | $busybox head -n 1)
    [ -n "$flags" ] || return 0 # another architecture
    missing=
    for flag in $needed_flags; do
        case " $flags " in
            *" $flag "*) ;;
            *) missing="$missing, $flag" ;;
        esac
    done
    [ -z "$missing" ] && return 0
    reason="this processor is too old: it has no ${missing#, } (x86-64-v2 needed)"
    return 1
}

# memory_mb IOMEM: the machine's memory, rounded up to 32 MB, because firmware keeps a part of it
memory_mb() {
    kb=0
    while read -r range _ kind; do
        [ "$kind" = "System RAM" ] && kb=$((kb + (0x${range#*-} - 0x${range%-*} + 1) / 1024))
    done < "$1"
    echo $(((kb + 32767) / 32768 * 32))
}

# size_mb PATH: the size of a file or of everything in a folder, rounded up; 0 if there is none
size_mb() {
    kb=$($busybox du -sk "$1" 2> /dev/null | $busybox cut -f 1)
    echo $(((${kb:-0} + 1023) / 1024))
}

# squashfs_bytes IMAGE: its size by its superblock; empty if it is no squashfs
squashfs_bytes() {
    [ "$($busybox head -c 4 "$1" 2> /dev/null)" = hsqs ] || return 0
    $busybox od -A n -t u8 -j 40 -N 8 "$1" | $busybox tr -d ' '
}

# filled_bytes FILE: the bytes that were written; the kernel gives a file of a cpio its full size before its content
filled_bytes() {
    size=$($busybox stat -c %s "$1")
    filled=$(($($busybox stat -c %b "$1") * 512)) # 0 on a ramfs, which doesn't count
    [ $filled -gt 0 ] && [ $filled -lt "$size" ] && size=$filled
    echo "$size"
}

# check_memory IOMEM IMAGE FIRMWARE
check_memory() {
    found_mb=$(memory_mb "$1")
    bytes=$(squashfs_bytes "$2")
    needed_mb=$((memory_base_mb + 2 * (${bytes:-0} / 1048576 + 1) + 2 * $(size_mb "$3")))
    needed_mb=$(((needed_mb + 31) / 32 * 32))
    [ $needed_mb -ge $memory_mb_min ] || needed_mb=$memory_mb_min
    [ "$found_mb" -eq 0 ] && return 0 # this kernel doesn't say
    [ "$found_mb" -ge $needed_mb ] && return 0
    reason="too little memory: $found_mb MB, $needed_mb MB needed"
    return 1
}

# parameter NAME CMDLINE: the last value of a kernel parameter
parameter() {
    value=
    for word in $($busybox cat "$2"); do
        case $word in "$1"=*) value=${word#*=} ;; esac
    done
    echo "$value"
}

# check_root IMAGE SHA256FILE CMDLINE
check_root() {
    if [ ! -s "$1" ]; then
        reason="the initrd is cut short: root.sqfs is missing"
        return 1
    fi
    found_bytes=$(filled_bytes "$1")
    bytes=$(squashfs_bytes "$1")
    if [ -n "$bytes" ] && [ "$found_bytes" -lt "$bytes" ]; then
        reason="the initrd is cut short: $found_bytes of $bytes bytes of root.sqfs"
        return 1
    fi
    expected=$(parameter diskcast.sha256 "$3")
    [ -n "$expected" ] || read -r expected _ 2> /dev/null < "$2"
    if [ -z "$expected" ]; then
        reason="root.sqfs has no checksum: root.sha256 is missing"
        return 1
    fi
    found=$($busybox sha256sum "$1" | $busybox cut -d ' ' -f 1)
    [ "$found" = "$expected" ] && return 0
    reason="root.sqfs is damaged: SHA-256 $(short "$found"), expected $(short "$expected")"
    return 1
}

# short DIGEST: enough of it to compare by eye
short() {
    echo "$1" | $busybox cut -c 1-16
}
