// SPDX-License-Identifier: Apache-2.0

package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencomputer/oc/internal/engine"
)

// Capture implements engine.Driver.
func (e *Engine) Capture(ctx context.Context, p engine.Process, opts engine.CaptureOptions) (*engine.Capture, error) {
	if err := e.step(ctx, Ready, p.Generation); err != nil {
		return nil, err
	}
	if opts.BeforeFreeze != nil {
		if err := opts.BeforeFreeze(); err != nil {
			return nil, err
		}
	}
	if err := e.step(ctx, Capture, p.Generation); err != nil {
		return nil, err
	}
	state, err := os.ReadFile(filepath.Join(e.Root(p.Generation), State))
	if err != nil {
		return nil, err
	}
	c := &engine.Capture{
		State: bytes.NewReader(state), StateSize: int64(len(state)), Meta: bytes.NewReader(nil), Pages: bytes.NewReader(nil),
	}
	if n := len(e.Pages); n > 0 {
		c.Pages, c.PagesSize, c.Ranges = bytes.NewReader(e.Pages), int64(n), []engine.PageRange{{Length: uint64(n)}}
	}
	closeFiles := func() {}
	if e.Files {
		if closeFiles, err = e.intoFiles(c, state); err != nil {
			return nil, err
		}
	}
	e.Captures.Add(1)
	c.Close = sync.OnceFunc(func() {
		closeFiles()
		e.Captures.Add(-1)
	})
	e.mu.Lock()
	spoil := e.spoil
	e.mu.Unlock()
	if spoil != nil {
		spoil(p.Generation, c)
	}
	return c, nil
}

// intoFiles puts a capture's contents into files.
func (e *Engine) intoFiles(c *engine.Capture, state []byte) (closeFiles func(), err error) {
	var files []*os.File
	closeFiles = func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}
	for _, content := range [][]byte{state, nil, nil} {
		f, err := os.CreateTemp(e.dir, "capture-*")
		if err != nil {
			closeFiles()
			return nil, err
		}
		files = append(files, f)
		_, err = f.Write(content)
		if err := errors.Join(err, os.Remove(f.Name())); err != nil {
			closeFiles()
			return nil, err
		}
	}
	c.State, c.Meta, c.Pages = files[0], files[1], files[2]
	return closeFiles, nil
}

// dups gives copies of descriptors, as another process gets them.
func dups(files []*os.File) ([]*os.File, error) {
	var out []*os.File
	for _, f := range files {
		c, err := dup(f)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// CaptureHeld implements engine.Driver.
func (e *Engine) CaptureHeld(ctx context.Context, p engine.Process, opts engine.CaptureOptions, _ time.Duration) (*engine.Capture, engine.Held, error) {
	c, err := e.Capture(ctx, p, opts)
	return c, free{}, err
}

// free is a hold on nothing: the tests' generations are not frozen.
type free struct{}

func (free) Thaw(context.Context) error { return nil }
func (free) Keep(context.Context) error { return nil }
