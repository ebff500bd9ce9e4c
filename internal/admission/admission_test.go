// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/hostmem"
)

const mb = 1 << 20

// machine is a machine whose memory a test takes and gives back.
type machine struct {
	mu        sync.Mutex
	available int64
	fail      error
}

const total = 10000 * mb

func (m *machine) read() (hostmem.Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return hostmem.Memory{Total: total, Available: m.available}, m.fail
}

func (m *machine) take(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.available -= bytes
}

func claim(t *testing.T, l *admission.Ledger, bytes int64) *admission.Claim {
	t.Helper()
	c, err := l.Claim("a test", bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused must be a fault of the kind whose message holds the texts.
func refused(t *testing.T, err error, kind fault.Kind, texts ...string) {
	t.Helper()
	if !fault.Is(err, kind) || fault.As(err).Hint == "" {
		t.Fatalf("%v, want %s with a hint", err, kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in %q", text, err)
		}
	}
}

func TestRefusalsSayTheNumbers(t *testing.T) {
	t.Parallel()
	m := &machine{available: 6000 * mb}
	l := admission.New(m.read, 500*mb)
	claim(t, l, 5000*mb)
	_, err := l.Claim("3 sandboxes", 501*mb)
	refused(t, err, fault.Unavailable, "3 sandboxes", "501 MB", "6000 MB", "5000 MB", "500 MB")
	last := claim(t, l, 500*mb)
	_, err = l.Claim("one byte", 1)
	refused(t, err, fault.Unavailable, "1 MB needed", "5500 MB")
	last.Release()
	last.Release()
	claim(t, l, 500*mb)
	_, err = l.Claim("40 sandboxes", 40000*mb)
	refused(t, err, fault.Exhausted, "40 sandboxes", "40000 MB", "10000 MB", "500 MB")
}

// What is taken moves from the ledger to the machine's own numbers.
func TestTakenMemoryIsPromisedNoMore(t *testing.T) {
	t.Parallel()
	m := &machine{available: 2000 * mb}
	l := admission.New(m.read, 0)
	c := claim(t, l, 1000*mb)
	var taken int64
	c.Track(func() int64 { return taken })
	for range 4 {
		if got, want := l.Promised(), 1000*mb-taken; got != want {
			t.Errorf("%d promised, want %d", got, want)
		}
		if _, err := l.Claim("more", 1001*mb); err == nil {
			t.Errorf("with %d taken too much is given", taken)
		}
		claim(t, l, 1000*mb).Release()
		taken += 250 * mb
		m.take(250 * mb)
	}
	taken = 5000 * mb // more than it claimed is not credited to others
	if l.Promised() != 0 {
		t.Errorf("%d promised", l.Promised())
	}
	taken = -1
	if l.Promised() != 1000*mb {
		t.Errorf("%d promised", l.Promised())
	}
	c.Release()
	claim(t, l, 1000*mb)
}

func TestOweIsNotRefused(t *testing.T) {
	t.Parallel()
	m := &machine{available: 1000 * mb}
	l := admission.New(m.read, 0)
	c := l.Owe(4000 * mb)
	_, err := l.Claim("more", 1)
	refused(t, err, fault.Unavailable, "4000 MB")
	c.Release()
	claim(t, l, 1000*mb)
}

func TestUnreadableMachine(t *testing.T) {
	t.Parallel()
	m := &machine{fail: errors.New("no numbers")}
	if _, err := admission.New(m.read, 0).Claim("x", 0); !errors.Is(err, m.fail) {
		t.Error(err)
	}
}

func TestNilLedgerPromisesEverything(t *testing.T) {
	t.Parallel()
	var l *admission.Ledger
	c := claim(t, l, 1<<60)
	c.Track(nil)
	c.Release()
	l.Owe(1).Release()
	if l.Promised() != 0 {
		t.Error("it remembers")
	}
}

// Many at once never take more than there is, whatever the order of claiming,
// taking, releasing and giving back.
func TestManyAtOnceNeverExhaustTheMachine(t *testing.T) {
	t.Parallel()
	const reserve, size = 100 * mb, 90 * mb
	m := &machine{available: 1000 * mb}
	l := admission.New(m.read, reserve)
	var wg sync.WaitGroup
	given := make(chan bool, 40*20)
	for range 40 {
		wg.Go(func() {
			for range 20 {
				c, err := l.Claim("one", size)
				given <- err == nil
				if err != nil {
					continue
				}
				m.take(size)
				c.Release()
				m.mu.Lock()
				if m.available < reserve {
					t.Errorf("%d bytes are left", m.available)
				}
				m.mu.Unlock()
				m.take(-size)
			}
		})
	}
	wg.Wait()
	close(given)
	n := 0
	for ok := range given {
		if ok {
			n++
		}
	}
	if n == 0 || l.Promised() != 0 {
		t.Errorf("%d given, %d promised in the end", n, l.Promised())
	}
}

// Without taking anything, exactly as many as fit are given.
func TestManyAtOnceAreGivenWhatFits(t *testing.T) {
	t.Parallel()
	m := &machine{available: 1000 * mb}
	l := admission.New(m.read, 99*mb)
	var wg sync.WaitGroup
	var mu sync.Mutex
	n := 0
	for range 100 {
		wg.Go(func() {
			if _, err := l.Claim("one", 90*mb); err == nil {
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n != 10 {
		t.Errorf("%d of 10 were given", n)
	}
}
