// SPDX-License-Identifier: Apache-2.0

// Package agent is what PID 1 of a sandbox is made of. It owns every process
// that is started from outside, keeps their output, and serves sessions,
// terminals and files over one socket.
//
// The sandbox is frozen and copied at any instant, and the process at the other
// end of the socket may be replaced at any instant. Hence its invariants:
//
//   - The agent never exits, whatever the socket says: it reads the same
//     descriptor for ever, because after a restore that is another socket.
//   - All state that a client may want to find again (output, offsets of
//     stdin, exit codes, keys of started sessions) lives in this process, so it
//     is part of the checkpoint.
//   - A Hello ends everything of the peer before it, and not one packet of that
//     peer's calls is sent after the acknowledgement.
//   - Exit statuses are collected in one place and handed to whom they belong;
//     see reaper.
//   - An idle agent does nothing: no tickers, no polling, few goroutines, little
//     memory, because all of it is in every checkpoint.
//   - A panic in one request is that request's failure.
//
// It imports the standard library without net, golang.org/x/sys and its own
// wire package, and knows nothing of the server.
package agent
