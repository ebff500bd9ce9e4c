// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencomputer/oc/internal/admission"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/hostmem"
	"github.com/opencomputer/oc/internal/sandbox"
	"github.com/opencomputer/oc/internal/sandbox/sandboxtest"
)

// scarce is a ledger over a machine of 100 GB with so many MB available.
func scarce(availableMB int64) (*admission.Ledger, *atomic.Int64) {
	var available atomic.Int64
	available.Store(availableMB << 20)
	return admission.New(func() (hostmem.Memory, error) {
		return hostmem.Memory{Total: 100 << 30, Available: available.Load()}, nil
	}, 100<<20), &available
}

// What is refused for want of memory leaves nothing behind, and nothing stays
// promised after anything.
func TestCreateIsAdmitted(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	ledger, available := scarce(163)
	s := serve(t, w, func(c *sandbox.Config) { c.Memory = ledger })
	if _, err := s.Create(t.Context(), w.Org, sandbox.CreateRequest{}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "163 MB available") {
		t.Errorf("create: %v", err)
	}
	w.Empty(t)
	available.Store(164 << 20)
	sb := create(t, w, s, sandbox.CreateRequest{})
	errStart := errors.New("cannot start")
	w.Engine.Hook(func(_ context.Context, step, _ string) error {
		if step != sandboxtest.Start {
			return nil
		}
		if ledger.Promised() != 64<<20 {
			t.Errorf("%d bytes are promised when it starts", ledger.Promised())
		}
		return errStart
	})
	if _, err := s.Create(t.Context(), w.Org, sandbox.CreateRequest{}); !errors.Is(err, errStart) {
		t.Errorf("create: %v", err)
	}
	w.Engine.Hook(nil)
	if ledger.Promised() != 0 {
		t.Errorf("%d bytes are still promised", ledger.Promised())
	}
	s.Close()
	w.Exactly(t, sb.GenerationID)
}

// A pool is not filled with memory that is not there.
func TestPoolIsAdmitted(t *testing.T) {
	t.Parallel()
	w := sandboxtest.New(t)
	ledger, available := scarce(200)
	s := serve(t, w, func(c *sandbox.Config) { c.PoolSize, c.Memory = 2, ledger })
	prepared := make(chan string, 10)
	w.Engine.Hook(func(_ context.Context, step, _ string) error {
		prepared <- step
		available.Store(0) // and from then on nothing more
		return nil
	})
	a := create(t, w, s, sandbox.CreateRequest{})
	w.Engine.Hook(nil)
	s.Close()
	for range len(prepared) {
		if step := <-prepared; step == sandboxtest.Prepare {
			t.Error("an engine was prepared without memory")
		}
	}
	w.Exactly(t, a.GenerationID)
}
