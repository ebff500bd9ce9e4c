#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Counts in memory, and writes down each number with the time and with a token
# that was drawn when it started and is kept nowhere but in memory: whoever
# shows the same token is the same process, never started again.
token=$(head -c 6 /dev/urandom | od -An -tx1 | tr -d ' \n')
n=0
while :; do
	n=$((n + 1))
	echo "$n ${EPOCHREALTIME/,/.} $token" >>count.log
	sleep 0.02
done
