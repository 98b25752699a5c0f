#!/bin/bash
# The overlay on one machine: three hosts, two containers each, one real etcd.
#
#   scripts/demo.sh            set up, show, remove            (`make demo`)
#   KEEP=1 scripts/demo.sh     set up, show, leave it running  (`make demo KEEP=1`)
#   scripts/demo.sh in WHERE COMMAND…   run a command in host1, host2/c1, outside, etcd …
#   scripts/demo.sh down       remove every demo that was left running
#
# Each host has two containers; how a host is made: scripts/lab.sh.
set -euo pipefail

lab=demo
# shellcheck source=scripts/lab.sh
. "$(dirname "$0")/lab.sh"
containers=(host1/c1 host1/c2 host2/c1 host2/c2 host3/c1 host3/c2)

# What a TCP server in one place sees as the source of a connection from another.
seen_source() { # FROM TO-ADDRESS
    run_in "$1" timeout 5 socat -u "TCP:$2:7000,connect-timeout=3" - 2>/dev/null || echo 'no answer'
}

gigabits() { # FROM TO-ADDRESS
    run_in "$1" iperf3 --client "$2" --connect-timeout 3000 --time 3 --json 2>/dev/null |
        jq -r '.end.sum_received.bits_per_second / 1e9 * 10 | round / 10' 2>/dev/null || echo 'no answer'
}

matrix() { # each container to each other
    local from to cell missing=0
    printf '%-10s' 'from \ to'; printf '%11s' "${containers[@]}"; echo
    for from in "${containers[@]}"; do
        for to in "${containers[@]}"; do
            [ "$from" = "$to" ] && continue
            # The first packet waits for neighbour discovery; the second shows the path.
            { run_in "$from" ping -q -c 2 -i 0.2 -W 2 "$(address "$to")" 2>/dev/null |
                sed -n 's|.* = \([0-9.]*\)/.*|\1 ms|p' >"$dir/ping-${from/\//-}-${to/\//-}"; } &
        done
        wait
    done
    for from in "${containers[@]}"; do
        printf '%-10s' "$from"
        for to in "${containers[@]}"; do
            cell=-
            if [ "$from" != "$to" ]; then
                cell=$(cat "$dir/ping-${from/\//-}-${to/\//-}")
                [ -n "$cell" ] || { cell=LOST; missing=$((missing + 1)); }
            fi
            printf '%11s' "$cell"
        done
        echo
    done
    return $((missing > 0))
}

up() {
    local host n from to row expected seen what vtep1 bad=0

    require ip nsenter unshare setsid etcd etcdctl jq ping iperf3 socat nft
    set_up
    for n in "${containers[@]}"; do container "$n"; done
    for host in "${hosts[@]}"; do
        echo "  $host     $(underlay "$host")  leases $(subnet "$host");" \
            "c1 $(address "$host/c1"), c2 $(address "$host/c2")"
    done
    for n in "${containers[@]}" outside; do
        # shellcheck disable=SC2016  # for socat's shell
        background "seen-${n/\//-}" "$n" socat TCP-LISTEN:7000,fork,reuseaddr 'SYSTEM:echo $SOCAT_PEERADDR'
    done
    background iperf-c host2/c1 iperf3 --server
    background iperf-h host2 iperf3 --server

    say 'Every container to every other by its plain address (mean round trip)'
    await 10 run_in host1/c1 ping -q -c 1 -W 1 "$(address host3/c2)" || true
    matrix || { bad=1; show_logs; }

    say 'TCP throughput, one stream for 3 s'
    echo "  host1/c1 to host2/c1 over the overlay  $(gigabits host1/c1 "$(address host2/c1)") Gbit/s"
    echo "  host1 to host2 without it              $(gigabits host1 192.0.2.12) Gbit/s"

    say 'What is masqueraded: the source address that the receiver sees'
    # Somebody outside who was given host1 as the way to the overlay.
    run_in fabric ip route add "$network" via 192.0.2.11
    # shellcheck disable=SC2016  # for the inner shell
    vtep1=$(run_in host1 sh -c '. /run/loden/subnet.env; echo "${FLANNEL_SUBNET%.*}.0"')
    printf '  %-42s %-16s %s\n' 'connection' 'source seen' ''
    while IFS='|' read -r row from to expected what; do
        seen=$(seen_source "$from" "$to")
        [ "$seen" = "$expected" ] || { bad=1; what="EXPECTED $expected: $what"; }
        printf '  %-42s %-16s %s\n' "$row" "$seen" "$what"
    done <<EOF
host1/c1 to host1/c2|host1/c1|$(address host1/c2)|$(address host1/c1)|kept: same host
host1/c1 to host2/c1|host1/c1|$(address host2/c1)|$(address host1/c1)|kept: inside the overlay
host1/c1 to a server outside|host1/c1|203.0.113.10|192.0.2.11|masqueraded to host1's address
host1 itself to host2/c1|host1|$(address host2/c1)|$vtep1|host1's address in the overlay
outside by host1 to host1/c1|outside|$(address host1/c1)|203.0.113.10|kept: host1's own subnet
outside by host1 to host2/c1|outside|$(address host2/c1)|$vtep1|masqueraded, so that the reply returns by host1
EOF

    if keep; then
        trap - EXIT INT TERM
        rm -f "$dir"/ping-*
        say 'Left running. To look around'
        sed 's/^/  /' <<EOF
scripts/demo.sh in host1 loden status
scripts/demo.sh in host1 ip route show proto 177
scripts/demo.sh in host1 nft list table inet loden
scripts/demo.sh in host1/c1 ping $(address host2/c1)
scripts/demo.sh in host2 bash
scripts/demo.sh in etcd env ETCDCTL_API=3 etcdctl get --prefix /coreos.com/network
The daemons' logs: $dir/daemon-host1.log …
To remove it: scripts/demo.sh down
EOF
    else
        say 'Removing it again'
    fi
    return $bad
}

main "$@"
