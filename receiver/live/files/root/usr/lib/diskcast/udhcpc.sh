#!/bin/busybox sh
# The script of busybox udhcpc: configures $interface, and leaves the lease in /run/diskcast/lease.$interface for
# receiver/live/network_setup.py. The values are the DHCP server's: each is one word, never run.

busybox=/bin/busybox
lease=${LEASE_FOLDER:-/run/diskcast}/lease.$interface

case $1 in
    deconfig)
        $busybox ip address flush dev "$interface"
        $busybox ip link set "$interface" up
        ;;
    bound | renew)
        # A renewal that changes nothing mustn't take the address away for a moment: a cast may be arriving on it.
        if ! $busybox ip -o address show dev "$interface" | $busybox grep -q " $ip/${mask:-24} "; then
            $busybox ip address flush dev "$interface"
            $busybox ip address add "$ip/${mask:-24}" broadcast + dev "$interface"
        fi
        for gateway in $router; do
            $busybox ip route add default via "$gateway" dev "$interface" && break
        done
        : > "${RESOLV_CONF:-/etc/resolv.conf}"
        for address in $dns; do
            echo "nameserver $address" >> "${RESOLV_CONF:-/etc/resolv.conf}"
        done
        # Moved into place whole: the reader waits for the file.
        printf 'address=%s/%s\nserver=%s\nhostname=%s\n' "$ip" "${mask:-24}" "$serverid" "$hostname" > "$lease.new"
        $busybox mv "$lease.new" "$lease"
        ;;
esac
exit 0
