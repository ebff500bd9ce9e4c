// SPDX-License-Identifier: Apache-2.0

// Package agentclient talks to the agent of one sandbox over the host end of
// its control socket. docs/agent-protocol.md describes the protocol.
//
// A Client is the present peer of the agent from its Hello until it is closed
// or the agent hears another Hello. All its methods may be called from many
// goroutines at once, and each call waits no longer than its context, also
// while the sandbox is frozen and takes nothing from the socket.
//
// The agent is not trusted. What it sends is bounded by credit, by the size of
// a packet and by the number of packets that belong to no call; what does not
// decode, or comes out of turn, ends the call or the Client. Text from the
// sandbox that reaches an error message is shortened and stripped of control
// characters. Names and archives of files are passed on as the sandbox made
// them: who unpacks an archive must expect a hostile one.
//
// Errors are, or wrap, faults: NotFound and the like as the agent reports them,
// Unavailable where it cannot be reached or does not answer in time.
//
// The package knows the protocol and faults, and nothing of sandboxes, engines
// or the API.
package agentclient
