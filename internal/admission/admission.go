// SPDX-License-Identifier: Apache-2.0

// Package admission keeps a machine's memory from being exhausted by what is
// started on it.
//
// What starts something claims the memory that it will bring in, and is refused
// with the numbers where there is not enough. The ledger holds what is promised
// and not yet taken; what is taken already shows in the machine's own numbers.
// Memory that guests may come to use later is not claimed: limits may be
// overcommitted, and the kernel's order of victims decides among guests.
//
// Invariants: the sum of what is promised and not yet taken, and of the reserve,
// is at most what was available when the last claim was given; a claim never
// waits; memory is never counted as neither promised nor taken, rather twice.
//
// It knows the machine's numbers (package hostmem) and nothing of sandboxes,
// checkpoints or engines.
package admission

import (
	"fmt"
	"sync"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/hostmem"
)

// Ledger is the memory that is promised on a machine. A nil Ledger promises
// everything. It is safe for concurrent use.
type Ledger struct {
	read    hostmem.Reader
	reserve int64

	mu     sync.Mutex
	claims map[*Claim]bool // set
}

// Claim is memory promised to one thing, until it is released.
type Claim struct {
	ledger *Ledger
	bytes  int64
	taken  func() int64 // nil: unknown; guarded by ledger.mu
}

// New makes a ledger over what read says, of which reserve bytes stay free.
func New(read hostmem.Reader, reserve int64) *Ledger {
	return &Ledger{read: read, reserve: reserve, claims: map[*Claim]bool{}}
}

// Claim promises bytes to what, a phrase for a person such as "40 sandboxes". It
// fails with Unavailable where they are not there now, and with Exhausted where
// this machine can never have them. The claim must be released, when the memory
// is really taken or the thing has ended.
func (l *Ledger) Claim(what string, bytes int64) (*Claim, error) {
	if l == nil {
		return nil, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Before the machine's numbers: what is taken in between counts twice.
	promised := l.promised()
	m, err := l.read()
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	if most := max(0, m.Total-l.reserve); bytes > most {
		return nil, fault.New(fault.Exhausted, "too much memory for this machine: %s would take %d MB; it has %d MB, of which %d MB stay reserved",
			what, mb(bytes), m.Total>>20, mb(l.reserve)).WithHint("ask for fewer or smaller sandboxes at once")
	}
	if m.Available-l.reserve-promised < bytes {
		return nil, fault.New(fault.Unavailable, "not enough memory for %s: %d MB needed; %d MB available, of which %d MB are promised to what is starting and %d MB stay reserved",
			what, mb(bytes), m.Available>>20, mb(promised), mb(l.reserve)).WithHint("stop some sandboxes and try again")
	}
	return l.add(bytes), nil
}

// Owe is a Claim that cannot be refused, for what runs already and will take
// the memory in any case.
func (l *Ledger) Owe(bytes int64) *Claim {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.add(bytes)
}

// add notes a claim. l.mu is held.
func (l *Ledger) add(bytes int64) *Claim {
	c := &Claim{ledger: l, bytes: bytes}
	l.claims[c] = true
	return c
}

// promised is what is promised and not yet taken. l.mu is held.
func (l *Ledger) promised() (sum int64) {
	for c := range l.claims {
		open := c.bytes
		if c.taken != nil {
			open -= min(max(c.taken(), 0), open)
		}
		sum += open
	}
	return sum
}

// Promised is what is promised and not yet taken, in bytes.
func (l *Ledger) Promised() int64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.promised()
}

// Track says how much of the claim is taken by now, in bytes, whenever it is
// looked at; taken must be quick and must not use the ledger.
func (c *Claim) Track(taken func() int64) {
	if c == nil {
		return
	}
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	c.taken = taken
}

// Release ends the claim. It may be called more than once.
func (c *Claim) Release() {
	if c == nil {
		return
	}
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	delete(c.ledger.claims, c)
}

// mb rounds bytes up to megabytes, so that the numbers of a refusal explain it.
func mb(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }
