#!/bin/bash
# HDFS by name on three hosts made of namespaces: a NameNode and three DataNodes that register under their
# own addresses and names, a file written and read inside, and read by a client outside of the overlay.
# Fails with a message if anything of this does not hold.
#
#   examples/hdfs/run.sh            set up, check, remove            (`make example-hdfs`)
#   KEEP=1 examples/hdfs/run.sh     set up, check, leave it running  (`make example-hdfs KEEP=1`)
#   examples/hdfs/run.sh in WHERE COMMAND…   run a command in host1/nn1, outside/client, host2 …
#   examples/hdfs/run.sh down       remove everything that was left running
set -euo pipefail

lab=hdfs
# shellcheck source=scripts/lab.sh
. "$(dirname "$0")/../../scripts/lab.sh"
jars=${LODEN_HADOOP_JARS:-$here/target/peers/hadoop}
# The same files in every container; on real hosts: in the image, or a volume.
shares=("$here/examples/hdfs/conf:conf" "$here/examples/hdfs/bin:bin" "$jars:jars" "$here/examples/hdfs/outside:outside")
conflist=$here/examples/hdfs/10-loden.conflist
declare -A place=([nn1]=host1/nn1 [dn1]=host1/dn1 [dn2]=host2/dn2 [dn3]=host3/dn3
    [writer]=host2/writer [reader]=host3/reader [client]=outside/client)
datanodes=(dn1 dn2 dn3)
volumes=(/mnt/conf:/etc/hadoop /mnt/bin:/opt/hadoop/bin /mnt/jars:/opt/hadoop/lib)

start() { # NAME PORTS
    run_container "${place[$1]}" "$2" "${volumes[@]}" "/mnt/disk/$1:/var/lib/hdfs"
}

hdfs() { # FROM ARGUMENT…
    run_in "${place[$1]}" timeout 60 /opt/hadoop/bin/hdfs "${@:2}" 2>"$dir/hdfs.log"
}

give_up() { # MESSAGE: with everybody's last words
    local name
    for name in nn1 "${datanodes[@]}"; do
        printf -- '--- last lines of %s\n' "$name" >&2
        grep -E ' (WARN|ERROR|FATAL) |Exception' "$dir/$name.log" 2>/dev/null | tail -n 4 | cut -c 1-300 >&2 || true
    done
    printf -- '--- last lines of the last command\n' >&2
    tail -n 6 "$dir/hdfs.log" >&2 2>/dev/null || true
    show_logs
    fail "$1"
}

live() { # how many DataNodes the NameNode has, by its own page
    run_in "${place[nn1]}" curl -sf -m 3 'http://nn1:9870/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState' |
        jq -r '.beans[0].NumLiveDataNodes'
}

all_live() { [ "$(live)" = ${#datanodes[@]} ]; }

blocks() { # FILE: its blocks and where they are
    hdfs writer fsck "$1" -files -blocks -locations | grep 'blk_.* Live_repl='
}

replicated() { # FILE COUNT: it has so many blocks, and each is on each DataNode
    local name blocks
    blocks=$(blocks "$1") || return 1
    [ "$(wc -l <<<"$blocks")" = "$2" ] || return 1
    for name in "${datanodes[@]}"; do
        [ "$(grep -cF "[$(address "${place[$name]}"):9866," <<<"$blocks")" = "$2" ] || return 1
    done
}

checksum() { sha256sum | cut -d' ' -f1; }

resolve() { # FROM NAME
    run_in "${place[$1]}" getent ahostsv4 "$2" | awk 'NR == 1 {print $1}'
}

connects() { # FROM ADDRESS PORT
    # shellcheck disable=SC2016  # for the inner shell
    run_in "${place[$1]}" timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$2" "$3" 2>/dev/null
}

up() {
    local host name got report want sum began port

    require ip nsenter unshare pivot_root setsid etcd etcdctl jq nft getent curl dnsmasq iptables
    [ -x "$cni_plugins/portmap" ] || fail "Debian's containernetworking-plugins is missing: run 'make example-hdfs'"
    [ -e "$jars/.list" ] || fail "Hadoop's jars are missing: run 'make example-hdfs'"
    [ -x /usr/lib/jvm/default-java/bin/java ] || fail "Debian's default-jre-headless is missing: run 'make example-hdfs'"
    # The router is the surrounding network's resolver as well: hosts ask it for all other names.
    export LODEN_DNS_UPSTREAM=192.0.2.1
    set_up
    background dnsmasq fabric dnsmasq --keep-in-foreground --user=root --pid-file --conf-file=/mnt/outside/dnsmasq.conf
    for host in "${hosts[@]}"; do echo "  $host     $(underlay "$host")  leases $(subnet "$host")"; done

    say 'A NameNode and three DataNodes on three hosts, configured by name alone'
    # What outsiders need is published on the hosts.
    start nn1 8020
    hdfs nn1 namenode -format -nonInteractive >/dev/null || give_up "the NameNode cannot be formatted"
    background nn1 "${place[nn1]}" /opt/hadoop/bin/hdfs namenode
    for name in "${datanodes[@]}"; do
        start "$name" 9866
        background "$name" "${place[$name]}" /opt/hadoop/bin/hdfs datanode
    done
    for name in nn1 "${datanodes[@]}"; do
        printf '  %s  on %s  %s\n' "$name" "${place[$name]%/*}" "$(address "${place[$name]}")"
    done
    began=$SECONDS
    await 90 all_live || give_up "only $(live || echo no) DataNodes have registered after 90 s"
    echo "  three DataNodes have registered after $((SECONDS - began)) s"
    got=$(hdfs nn1 getconf -confKey dfs.namenode.datanode.registration.ip-hostname-check) || give_up "the configuration cannot be read"
    [ "$got" = true ] || give_up "dfs.namenode.datanode.registration.ip-hostname-check is $got"
    report=$(hdfs nn1 dfsadmin -report -live) || give_up "there is no report"
    grep -E '^Name:' <<<"$report" | sort -k 3 | sed 's/^/  /'
    # Not a gateway's, not a host's.
    want=$(for name in "${datanodes[@]}"; do echo "Name: $(address "${place[$name]}"):9866 ($name.loden.internal)"; done)
    [ "$(grep -E '^Name:' <<<"$report" | sort)" = "$(sort <<<"$want")" ] ||
        give_up "the DataNodes have registered as above, not under their own addresses and names, which are"$'\n'"$want"
    want=$(printf 'Hostname: %s.loden.internal\n' "${datanodes[@]}")
    [ "$(grep -E '^Hostname:' <<<"$report" | sort)" = "$want" ] ||
        give_up "the DataNodes call themselves"$'\n'"$(grep -E '^Hostname:' <<<"$report")"$'\n'"and not"$'\n'"$want"
    echo "  each under its container's own address and name (ip-hostname-check is true)"

    say 'A file of six blocks, written on host2 and read on host3'
    start writer ''
    start reader ''
    run_in "${place[writer]}" head -c $((5 * 1024 * 1024 + 12345)) /dev/urandom >"$dir/file"
    sum=$(checksum <"$dir/file")
    # Blocks as small as HDFS allows, for this file.
    hdfs writer dfs -D dfs.blocksize=1048576 -put - /file <"$dir/file" || give_up "the file cannot be written"
    # The NameNode passes over a DataNode that is busy, and has it take its replica a little later.
    await 60 replicated /file 6 || give_up "not each of the file's six blocks is on each DataNode: $(blocks /file)"
    echo "  every block has a replica on each DataNode"
    [ "$(hdfs reader dfs -cat /file | checksum)" = "$sum" ] || give_up "what is read is not what was written"
    echo "  read on host3: the checksum is equal"

    say 'A client outside of the overlay, at 203.0.113.10'
    mkdir -p "$dir/disk-outside/hadoop"
    cp "$here"/examples/hdfs/conf/{core-site.xml,java.security,log4j.properties} "$here/examples/hdfs/outside/hdfs-site.xml" \
        "$dir/disk-outside/hadoop/"
    isolate outside/client /proc/self/ns/net 'nameserver 203.0.113.1' \
        /mnt/disk/hadoop:/etc/hadoop "${volumes[@]:1}"
    for name in nn1 "${datanodes[@]}"; do
        want=$(underlay "${place[$name]%/*}")
        got=$(resolve client "$name.loden.internal") || true
        [ "$got" = "$want" ] || give_up "outside, $name.loden.internal is ${got:-nothing} instead of its host's address $want"
        port=9866
        [ "$name" != nn1 ] || port=8020
        connects client "$name.loden.internal" "$port" || give_up "outside, $name.loden.internal does not answer at port $port"
        ! connects client "$(address "${place[$name]}")" "$port" ||
            give_up "the client has a way into the overlay, so this shows nothing"
        echo "  $name.loden.internal is $got and answers at port $port; $(address "${place[$name]}") cannot be reached"
    done
    ! hdfs client dfs -D dfs.client.use.datanode.hostname=false -D dfs.client.max.block.acquire.failures=0 -cat /file >/dev/null ||
        give_up "the client can read by the DataNodes' addresses, so this shows nothing"
    grep -q BlockMissingException "$dir/hdfs.log" || give_up "the client cannot read at all"
    echo "  without dfs.client.use.datanode.hostname it cannot read"
    [ "$(hdfs client dfs -cat /file | checksum)" = "$sum" ] || give_up "what is read outside is not what was written"
    echo "  with it, it reads the file: the checksum is equal"
    hdfs client dfs -put - /from-outside <"$dir/file" || give_up "the client cannot write"
    [ "$(hdfs reader dfs -cat /from-outside | checksum)" = "$sum" ] || give_up "what was written outside is not what is read on host3"
    echo "  and writes one, which is read on host3: the checksum is equal"

    if keep; then
        trap - EXIT INT TERM
        say 'Left running. To look around'
        sed 's/^/  /' <<EOT
examples/hdfs/run.sh in host1/nn1 /opt/hadoop/bin/hdfs dfsadmin -report
examples/hdfs/run.sh in outside/client /opt/hadoop/bin/hdfs dfs -ls /
examples/hdfs/run.sh in outside getent hosts dn1.loden.internal
examples/hdfs/run.sh in host1 loden names
The logs: $dir/nn1.log …
To remove it: examples/hdfs/run.sh down
EOT
    else
        say 'All of it held. Removing it again'
    fi
}

main "$@"
