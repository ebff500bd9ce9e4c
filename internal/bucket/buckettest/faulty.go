// SPDX-License-Identifier: Apache-2.0

package buckettest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/opencomputer/oc/internal/bucket"
)

// The operations that a Faulty asks about.
const (
	OpPut    = "put"
	OpGet    = "get"
	OpReadAt = "readat"
	OpList   = "list" // its key is the prefix
	OpDelete = "delete"
)

// Fault is what goes wrong with a call.
type Fault int

// The faults.
const (
	FaultNone        Fault = iota
	FaultBefore            // ErrInjected, and no effect
	FaultAfter             // ErrInjected after the effect: the answer is lost
	FaultCrashBefore       // no effect, and this call and every later one is ErrCrashed
	FaultCrashAfter        // the same after the effect
)

var (
	// ErrInjected is the error of a call that a Faulty failed.
	ErrInjected = errors.New("buckettest: injected fault")
	// ErrCrashed is the error of all calls of a Faulty after a crash.
	ErrCrashed = errors.New("buckettest: crashed")
)

// Faulty is a bucket that fails on demand. Whoever shares the bucket below it
// is another process, which goes on after a crash.
type Faulty struct {
	below   bucket.Bucket
	fault   func(op, key string) Fault
	crashed atomic.Bool
}

var _ bucket.Bucket = (*Faulty)(nil)

// NewFaulty wraps a bucket. fault is asked before each call, from many
// goroutines at a time; nil is none.
func NewFaulty(below bucket.Bucket, fault func(op, key string) Fault) *Faulty {
	if fault == nil {
		fault = func(string, string) Fault { return FaultNone }
	}
	return &Faulty{below: below, fault: fault}
}

// Seeded gives faults for NewFaulty: a share of the calls, between 0 and 1,
// fails, half of them after the effect.
func Seeded(seed uint64, share float64) func(op, key string) Fault {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 0))
	return func(string, string) Fault {
		mu.Lock()
		defer mu.Unlock()
		switch x := r.Float64(); {
		case x < share/2:
			return FaultBefore
		case x < share:
			return FaultAfter
		}
		return FaultNone
	}
}

// Crash makes every later call fail.
func (f *Faulty) Crash() { f.crashed.Store(true) }

// do makes a call of the bucket below, or not, and gives the error to report.
func (f *Faulty) do(op, key string, call func() error) error {
	if f.crashed.Load() {
		return fmt.Errorf("%s %s: %w", op, key, ErrCrashed)
	}
	fault := f.fault(op, key)
	if fault == FaultCrashBefore || fault == FaultCrashAfter {
		f.crashed.Store(true)
	}
	if fault == FaultNone || fault == FaultAfter || fault == FaultCrashAfter {
		if err := call(); fault == FaultNone {
			return err
		}
	}
	if fault == FaultBefore || fault == FaultAfter {
		return fmt.Errorf("%s %s: %w", op, key, ErrInjected)
	}
	return fmt.Errorf("%s %s: %w", op, key, ErrCrashed)
}

// Put implements bucket.Bucket.
func (f *Faulty) Put(ctx context.Context, key string, body []byte, cond bucket.Condition) (etag string, err error) {
	err = f.do(OpPut, key, func() (err error) {
		etag, err = f.below.Put(ctx, key, body, cond)
		return err
	})
	if err != nil {
		return "", err
	}
	return etag, nil
}

// Get implements bucket.Bucket.
func (f *Faulty) Get(ctx context.Context, key string) (body []byte, etag string, err error) {
	err = f.do(OpGet, key, func() (err error) {
		body, etag, err = f.below.Get(ctx, key)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return body, etag, nil
}

// ReadAt implements bucket.Bucket.
func (f *Faulty) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	return f.do(OpReadAt, key, func() error { return f.below.ReadAt(ctx, key, p, off) })
}

// List implements bucket.Bucket.
func (f *Faulty) List(ctx context.Context, prefix, after string, limit int) (page []bucket.Object, more bool, err error) {
	err = f.do(OpList, prefix, func() (err error) {
		page, more, err = f.below.List(ctx, prefix, after, limit)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return page, more, nil
}

// Delete implements bucket.Bucket.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	return f.do(OpDelete, key, func() error { return f.below.Delete(ctx, key) })
}
