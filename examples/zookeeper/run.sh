#!/bin/bash
# A ZooKeeper ensemble of three, by name, on three hosts made of namespaces: it forms, a member moves to
# another host, etcd goes away. Fails with a message if anything of this does not hold.
#
#   examples/zookeeper/run.sh            set up, check, remove            (`make example-zookeeper`)
#   KEEP=1 examples/zookeeper/run.sh     set up, check, leave it running  (`make example-zookeeper KEEP=1`)
#   examples/zookeeper/run.sh in WHERE COMMAND…   run a command in host1/zk1, host1, etcd …
#   examples/zookeeper/run.sh down       remove everything that was left running
set -euo pipefail

lab=zookeeper
# shellcheck source=scripts/lab.sh
. "$(dirname "$0")/../../scripts/lab.sh"
# The same files in every container; on real hosts: in the image, or a volume.
shares=("$here/examples/zookeeper/conf:conf")
members=(zk1 zk2 zk3)
declare -A place=([zk1]=host1/zk1 [zk2]=host2/zk2 [zk3]=host3/zk3)

start_member() { # NAME
    run_container "${place[$1]}" '' /mnt/conf:/etc/zookeeper "/mnt/disk/$1:/var/lib/zookeeper"
    background "$1" "${place[$1]}" /etc/zookeeper/zookeeper
}

# Asks a member by its name, as any client does.
ask() { # FROM MEMBER WORD
    # shellcheck disable=SC2016  # for the inner shell
    run_in "${place[$1]}" timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/2181"; printf "$1" >&3; cat <&3' "$2" "$3" 2>/dev/null || true
}

role() { ask "$1" "$1" mntr | awk '$1 == "zk_server_state" {print $2}'; }

leader() { # whoever leads, if one does and two follow it
    local member leader='' followers=0
    for member in "${members[@]}"; do
        case $(role "$member") in
        leader) leader+=$member ;;
        follower) followers=$((followers + 1)) ;;
        esac
    done
    [ "$followers" = 2 ] && [[ " ${members[*]} " = *" $leader "* ]] && echo "$leader"
}

roles() {
    local member
    for member in "${members[@]}"; do
        printf '  %s  on %s  %-12s %s\n' "$member" "${place[$member]%/*}" "$(address "${place[$member]}")" "$(role "$member")"
    done
}

formed() { # SECONDS
    local from=$SECONDS
    await "$1" leader || { roles; give_up "the ensemble is not complete after $1 s"; }
    roles
    echo "  one leader and two followers after $((SECONDS - from)) s"
}

give_up() { # MESSAGE: with the members' last words
    local member
    for member in "${members[@]}"; do
        printf -- '--- last lines of %s\n' "$member" >&2
        tail -n 8 "$dir/$member.log" >&2 2>/dev/null || true
    done
    show_logs
    fail "$1"
}

cli() { # FROM MEMBER COMMAND…
    run_in "${place[$1]}" timeout 30 /etc/zookeeper/zookeeper cli -server "$2:2181" "${@:3}" 2>"$dir/cli.log"
}

write() { # MEMBER PATH VALUE
    cli "$1" "$1" create "$2" "$3" >/dev/null || give_up "$2 cannot be written at $1: $(cat "$dir/cli.log")"
    echo "  $2 = $3 written at $1"
}

read_back() { # MEMBER PATH VALUE [FROM]
    local got from=${4:-$1}
    # A follower may be behind; sync waits until it has what the leader had. Both in one session.
    got=$(printf 'sync %s\nget %s\n' "$2" "$2" | run_in "${place[$from]}" timeout 30 /etc/zookeeper/zookeeper cli \
        -server "$1:2181" 2>"$dir/cli.log") || give_up "$2 cannot be read at $1: $(cat "$dir/cli.log")"
    grep -qx -- "$3" <<<"$got" || give_up "$2 at $1 is not $3 but: $got"
    echo "  $2 = $3 read at $1"
}

# Every member resolves every member, both ways.
names_resolve() {
    local from to got
    for from in "${members[@]}"; do
        for to in "${members[@]}"; do
            got=$(run_in "${place[$from]}" getent ahostsv4 "$to" | awk 'NR == 1 {print $1}') || true
            [ "$got" = "$(address "${place[$to]}")" ] || return 1
            got=$(run_in "${place[$from]}" getent hosts "$(address "${place[$to]}")" | awk '{print $2}') || true
            [ "$got" = "$to.loden.internal" ] || return 1
        done
    done
}

known() { # HOST NAME: that host knows the name's address
    run_in "$1" loden names "$2" | grep -qwF "$(address "${place[$2]}")"
}

connected_to() { # MEMBER ADDRESS: for the election or as its follower or leader
    run_in "${place[$1]}" ss -Htn state established "( dport = :2888 or dport = :3888 or sport = :2888 or sport = :3888 )" |
        awk '{print $4}' | sed 's/^\[::ffff://; s/\]//' | cut -d: -f1 | grep -qxF "$2"
}

others_found() { # MEMBER ADDRESS
    local other
    for other in "${members[@]}"; do
        [ "$other" = "$1" ] || connected_to "$other" "$2" || return 1
    done
}

up() {
    local member host former began moved leading

    require ip nsenter unshare pivot_root setsid etcd etcdctl jq nft ss getent
    [ -e /usr/share/java/zookeeper.jar ] || fail "Debian's libzookeeper-java is missing: run 'make example-zookeeper'"
    [ -x /usr/lib/jvm/default-java/bin/java ] || fail "Debian's default-jre-headless is missing: run 'make example-zookeeper'"
    set_up
    for host in "${hosts[@]}"; do echo "  $host     $(underlay "$host")  leases $(subnet "$host")"; done

    say 'Three members on three hosts, configured by name alone'
    for member in "${members[@]}"; do start_member "$member"; done
    formed 60
    names_resolve || give_up "not every member resolves every member, forward and reverse"
    echo "  every member resolves every member, forward and reverse"
    write zk1 /written-at-zk1 hello
    read_back zk3 /written-at-zk1 hello

    say 'zk3 moves from host3 to host1, under the same name'
    former=$(address "${place[zk3]}")
    end zk3 "${place[zk3]}"
    remove_container "${place[zk3]}"
    echo "  stopped on host3; it was $former"
    write zk2 /written-without-zk3 two-are-enough
    # Its data comes along, as on a volume that can be mounted elsewhere.
    cp -a "$dir/disk-host3/zk3" "$dir/disk-host1/"
    place[zk3]=host1/zk3
    began=$SECONDS
    start_member zk3
    moved=$(address "${place[zk3]}")
    [ "$moved" != "$former" ] || give_up "zk3 has its former address $former on another host"
    formed 60
    await 30 others_found zk3 "$moved" || give_up "zk1 and zk2 have no connection with zk3's new address $moved"
    for member in zk1 zk2; do
        ! connected_to "$member" "$former" || give_up "$member still talks to zk3's former address $former"
    done
    names_resolve || give_up "not every member resolves every member, forward and reverse"
    echo "  zk1 and zk2 talk to zk3 at $moved, $((SECONDS - began)) s after its container's start"
    read_back zk3 /written-without-zk3 two-are-enough
    write zk3 /written-at-the-new-place moved
    read_back zk2 /written-at-the-new-place moved

    say 'etcd is stopped, and the leader restarts'
    end etcd etcd
    ! run_in host1 loden config show >/dev/null 2>&1 || give_up "etcd still answers"
    names_resolve || give_up "not every member resolves every member while etcd is away"
    echo "  every member still resolves every member, forward and reverse"
    write zk1 /written-without-etcd still-here
    leading=$(leader) || give_up "nobody leads"
    # The other two elect one of them, each finding the other by its name.
    end "$leading" "${place[$leading]}"
    echo "  $leading, which led, was stopped"
    background "$leading" "${place[$leading]}" /etc/zookeeper/zookeeper
    formed 60
    [ "$(leader)" != zk3 ] || echo "  zk3 leads from its new place: the others found it there"
    read_back "$leading" /written-without-etcd still-here

    say 'etcd is back'
    start_etcd
    # ADD fails if an etcd that is there does not take the name.
    place[client]=host2/client
    run_container host2/client '' /mnt/conf:/etc/zookeeper
    await 10 known host3 client ||
        give_up "host3 does not hear of the name of a new container on host2"
    echo "  a new container on host2, client, has its name on host3"
    read_back zk3 /written-without-etcd still-here client
    formed 30

    if keep; then
        trap - EXIT INT TERM
        say 'Left running. To look around'
        sed 's/^/  /' <<EOT
examples/zookeeper/run.sh in ${place[zk1]} /etc/zookeeper/zookeeper cli -server zk3 ls /
examples/zookeeper/run.sh in ${place[zk1]} cat /etc/resolv.conf
examples/zookeeper/run.sh in host1 loden names
The members' logs: $dir/zk1.log …
To remove it: examples/zookeeper/run.sh down
EOT
    else
        say 'All of it held. Removing it again'
    fi
}

main "$@"
