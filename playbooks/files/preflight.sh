#!/bin/sh
# Prints what the preflight wants to know of a host, one key=value a line, for ansible.builtin.raw: it needs no Python and
# no sudo, and changes nothing. module_utils/fleet/preflight.py reads it.
LC_ALL=C
export LC_ALL

say() { printf '%s=%s\n' "$1" "$2"; }

say preflight begin
say uid "$(id -u)"
say user "$(id -un)"

if [ "$(id -u)" = 0 ]; then
    say sudo root
elif ! command -v sudo >/dev/null 2>&1; then
    say sudo missing
elif sudo -n true >/dev/null 2>&1; then
    say sudo ok
else
    say sudo refused
fi

# Every interpreter that Ansible would look for.
for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$python" >/dev/null 2>&1; then
        say python "$python $("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"
    fi
done

if [ -r /etc/os-release ]; then
    # shellcheck source=/dev/null
    (. /etc/os-release && say os_id "${ID-}" && say os_version_id "${VERSION_ID-}")
fi

if [ -d /run/systemd/system ]; then say systemd yes; else say systemd no; fi
say init "$(cat /proc/1/comm 2>/dev/null)"
say architecture "$(uname -m)"
say kernel "$(uname -r)"

for tool in apt-get dpkg dnf rpm; do
    if command -v "$tool" >/dev/null 2>&1; then say tool "$tool"; fi
done

while read -r key value _; do
    if [ "$key" = MemTotal: ]; then say memory_kib "$value"; fi
done </proc/meminfo

say clock "$(date +%s)"
if [ -d /dev/shm ]; then say shm yes; else say shm no; fi

# Ports that something listens on, and those of the instances that the fleet has here.
for table in /proc/net/tcp /proc/net/tcp6; do
    [ -r "$table" ] || continue
    while read -r _ address _ state _; do
        if [ "$state" = 0A ]; then say listens "$((0x${address##*:}))"; fi
    done <"$table"
done
for record in /etc/l40s-fleet/instances/*/instance.json; do
    [ -r "$record" ] || continue
    say own_port "$(tr ',{}' '\n' <"$record" | sed -n 's/^ *"[a-z_]*port": *\([0-9]*\).*/\1/p' | tr '\n' ' ')"
done

# Engines that are installed whole.
for marker in /opt/vllm/*/.complete; do
    [ -e "$marker" ] || continue
    marker=${marker%/.complete}
    say engine "${marker##*/}"
done

# Path, free KiB, mount point and how it is mounted, of the file system that holds the path or will hold it.
for path in /opt /var/lib /etc; do
    holder=$path
    while [ ! -d "$holder" ]; do
        holder=${holder%/*}
        holder=${holder:-/}
    done
    df -Pk "$holder" 2>/dev/null | {
        read -r _
        read -r _ _ _ free_kib _ mount
        mode=rw
        while read -r _ point _ options _; do
            if [ "$point" = "$mount" ]; then
                case ",$options," in
                    *,ro,*) mode=ro ;;
                    *) mode=rw ;;
                esac
            fi
        done </proc/mounts
        say disk "$path $free_kib $mode $mount"
    }
done
say preflight end
