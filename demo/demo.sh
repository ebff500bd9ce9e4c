#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The checkpoint story on a server of its own, with proofs: a sandbox with a
# live process is checkpointed while it runs, damaged, restored in place, and
# forked twice; all three go on from the same instant. Exits non-zero when a
# proof fails. `make demo` builds first and calls this.
#
# The template is kept in .demo-data between runs; demo.sh --clean removes it.
set -euo pipefail
cd "$(dirname "$0")/.."

oc=$PWD/bin/oc
export OC_DATA_DIR=$PWD/.demo-data OC_CONFIG=$PWD/.demo-data/config.json
# A home of its own: the configuration of the person who runs this stays as it is.
export HOME=$OC_DATA_DIR/home
unset SUDO_USER OPENCOMPUTER_API_KEY OPENCOMPUTER_API_URL

server_down() { "$oc" down --kill >/dev/null 2>&1 || true; }

if [ "${1-}" = --clean ]; then
	[ -d "$OC_DATA_DIR" ] || exit 0
	[ -x "$oc" ] && server_down
	rm -rf --one-file-system "$OC_DATA_DIR"
	exit
fi

[ "$(id -u)" = 0 ] || { echo "demo: sandboxes need root: sudo make demo" >&2; exit 1; }
[ -x "$oc" ] || { echo "demo: no $oc: run make demo" >&2; exit 1; }
mkdir -p "$HOME"
echo '{}' >"$OC_CONFIG" # not this machine's settings

step=0 steps=7 bold='' plain=''
[ -t 1 ] && bold=$'\e[1m' plain=$'\e[0m'
title() {
	step=$((step + 1))
	printf '\n%s[%d/%d] %s%s\n' "$bold" "$step" "$steps" "$*" "$plain"
}

quoted() { [[ $1 =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] && echo "$1" || echo "'$1'"; }

# say prints a command as one would type it, runs it and shows what it prints,
# which is in `out` afterwards.
say() {
	local shown=()
	for word in "$@"; do
		shown+=("$(quoted "$word")")
	done
	printf '$ oc %s\n' "${shown[*]}"
	out=$("$oc" "$@" </dev/null)
	[ -z "$out" ] || printf '%s\n' "$out"
}

proofs=0 failures=0
prove() { # prove TEXT COMMAND...: the command decides
	local text=$1
	shift
	proofs=$((proofs + 1))
	if "$@"; then
		printf '  proven: %s\n' "$text"
	else
		failures=$((failures + 1))
		printf '  FAILED: %s\n' "$text"
	fi
}

in_sandbox() { "$oc" exec "$1" -- bash -c "$2" </dev/null; }
id_in() { grep -oE "\b$1-[0-9a-f]{8}\b" <<<"$out" | head -n 1; }
now() { date +%s.%N; }

# last prints "NUMBER TOKEN" of the newest line of a sandbox's log.
last() { in_sandbox "$1" "tail -n 1 count.log" | awk '{print $1, $3}'; }

# going_on prints "RESUMED LAST TOKENS GAPS" of a log: the last number that was
# written before the moment $2, the newest one, how many different tokens
# there are and how many numbers are missing or doubled.
going_on() {
	in_sandbox "$1" "cat count.log" | awk -v t="$2" '
		$2 <= t { resumed = $1 }
		$1 != NR { gaps++ }
		{ seen[$3] = 1; last = $1 }
		END { n = 0; for (k in seen) n++; print resumed + 0, last + 0, n, gaps + 0 }'
}

# wait_for_count waits until a sandbox has counted to a number, for a minute.
wait_for_count() {
	local n=0 end=$((SECONDS + 60))
	while [ "$n" -lt "$2" ]; do
		[ "$SECONDS" -lt "$end" ] || { echo "demo: $1 does not count on from $n" >&2; return 1; }
		read -r n _ < <(last "$1" 2>/dev/null || echo 0) || n=0
		n=${n:-0}
		sleep 0.1
	done
}

free_port() {
	local port
	for port in $(shuf -i 20000-29999 -n 50); do
		(exec 6<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
	done
	return 1
}

finish() {
	local code=$?
	trap - EXIT
	if [ $code != 0 ] && [ -f "$OC_DATA_DIR/server.log" ]; then
		echo "demo: the last lines of $OC_DATA_DIR/server.log:" >&2
		tail -n 15 "$OC_DATA_DIR/server.log" >&2
	fi
	[ -z "${cp-}" ] || "$oc" checkpoint delete "$sb" "$cp" >/dev/null 2>&1 || true
	server_down
	exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

title "a server of its own (data in .demo-data, nothing else is touched)"
server_down
OC_LISTEN=127.0.0.1:$(free_port)
export OC_LISTEN
export OPENCOMPUTER_API_URL=http://$OC_LISTEN
say up

title "a sandbox (the first time, its template is made from Debian packages: a few minutes)"
say create --name demo --timeout 0
sb=$(id_in sb)

title "a live process and some work in it"
say push "$sb" demo/counter.sh counter.sh
say exec --detach "$sb" -- bash counter.sh
# shellcheck disable=SC2016 # expanded inside
in_sandbox "$sb" 'mkdir -p thesis; for i in $(seq 200); do echo "chapter $i" >thesis/$i.txt; done'
wait_for_count "$sb" 50
work=$(in_sandbox "$sb" 'cat thesis/*.txt | sha256sum | cut -c1-16; ls thesis | wc -l' | paste -sd ' ')
read -r before token < <(last "$sb")
echo "  counting (at $before, process token $token); thesis: $work files"

title "a checkpoint, while it runs"
say checkpoint create "$sb" --name before-the-accident
cp=$(id_in cp)
taken=$(now)
read -r after _ < <(last "$sb")
wait_for_count "$sb" $((after + 25))
say checkpoint list "$sb"
read -r later same < <(last "$sb")
prove "the sandbox kept running: the same process counted on to $later" test "$same" = "$token" -a "$later" -gt "$after"

title "the accident, and back"
say exec "$sb" -- pkill -f counter.sh
say exec "$sb" -- rm -rf thesis
say exec "$sb" -- touch noise.txt
prove "the process is gone" test -z "$(in_sandbox "$sb" 'pgrep -f "[c]ounter.sh" || true')"
prove "the files are gone" test "$(in_sandbox "$sb" 'ls -d thesis 2>/dev/null | wc -l')" = 0
say checkpoint restore "$sb" "$cp"
wait_for_count "$sb" $((after + 25))
prove "200 files are back, with the same contents" \
	test "$(in_sandbox "$sb" 'cat thesis/*.txt | sha256sum | cut -c1-16; ls thesis | wc -l' | paste -sd ' ')" = "$work"
prove "what came after the checkpoint is not there" test "$(in_sandbox "$sb" 'ls noise.txt 2>/dev/null | wc -l')" = 0

title "two forks of the same instant"
say checkpoint spawn "$cp"
fork1=$(id_in sb)
say checkpoint spawn "$cp"
fork2=$(id_in sb)
for f in "$fork1" "$fork2"; do wait_for_count "$f" $((after + 25)); done
in_sandbox "$fork1" 'echo "take the left" >way.txt'
in_sandbox "$fork2" 'echo "take the right" >way.txt'
declare -A resumed
for s in "$sb" "$fork1" "$fork2"; do
	read -r number newest tokens gaps < <(going_on "$s" "$taken")
	resumed[$s]=$number
	case $s in "$sb") what="restored" ;; "$fork1") what="fork 1" ;; *) what="fork 2" ;; esac
	printf '  %-8s %s went on from %d, is at %d\n' "$what" "$s" "$number" "$newest"
	prove "$what: the same process (token $token), no number lost or doubled" \
		test "$tokens $gaps $(last "$s" | cut -d' ' -f2)" = "1 0 $token"
done
prove "all three went on from the same number, ${resumed[$sb]}" \
	test "${resumed[$sb]} ${resumed[$sb]}" = "${resumed[$fork1]} ${resumed[$fork2]}"
prove "that number is of the checkpoint's instant: between $before and $after" \
	test "${resumed[$sb]}" -ge "$before" -a "${resumed[$sb]}" -le "$after"
prove "the forks share nothing: each has its own way" \
	test "$(in_sandbox "$fork1" 'cat way.txt') $(in_sandbox "$fork2" 'cat way.txt') $(in_sandbox "$sb" 'ls way.txt 2>/dev/null | wc -l')" = "take the left take the right 0"
prove "they have host names of their own" \
	test "$(for s in "$sb" "$fork1" "$fork2"; do in_sandbox "$s" 'cat /proc/sys/kernel/hostname'; done | sort -u | wc -l)" = 3
prove "they draw different random numbers" \
	test "$(for s in "$fork1" "$fork2"; do in_sandbox "$s" 'head -c 16 /dev/urandom | od -An -tx1'; done | sort -u | wc -l)" = 2

title "cleaning up"
for s in "$fork1" "$fork2"; do say kill "$s"; done
say checkpoint delete "$sb" "$cp"
say kill "$sb"
cp='' sb=''
say down --kill

printf '\n%d of %d proofs hold.\n' $((proofs - failures)) "$proofs"
[ "$failures" = 0 ]
