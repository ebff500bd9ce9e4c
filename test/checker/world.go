// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync/atomic"
)

// world is all that is changed and checked. Only one goroutine has it at a time:
// that of the requests, or the one that run has started.
type world struct {
	areas []*area
	tree  *tree
	made  int // changes

	stop    atomic.Bool
	stopped chan error // what the running changes end with; nil: none run
}

// newWorld takes in the tree that is there, and maps areas of this many pages in all.
func newWorld(pages int, dir string) (*world, error) {
	w := &world{}
	var err error
	if w.tree, err = newTree(dir); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		kind   kind
		shares int // of 16
	}{{private, 8}, {shared, 2}, {inFile, 1}, {inUnlinked, 1}, {ofFile, 1}, {private, 1}, {private, 1}, {shared, 1}} {
		a, err := newArea(part.kind, max(1, pages*part.shares/16), filepath.Join(dir, fmt.Sprintf("mapped-%d", len(w.areas))))
		if err != nil {
			return nil, err
		}
		w.areas = append(w.areas, a)
	}
	return w, w.update(rand.New(rand.NewPCG(uint64(pages), 0)), pages/2)
}

// do answers a request.
func (w *world) do(words []string) (string, error) {
	if w.stopped != nil && (len(words) != 1 || words[0] != "stop") {
		return "", errors.New("it is running")
	}
	switch {
	case len(words) == 3 && words[0] == "update":
		n, err := strconv.Atoi(words[2])
		if err != nil {
			return "", err
		}
		rng, err := seeded(words[1])
		if err != nil {
			return "", err
		}
		return "updated", w.update(rng, n)
	case len(words) == 2 && words[0] == "run":
		rng, err := seeded(words[1])
		if err != nil {
			return "", err
		}
		w.run(rng)
		return "running", nil
	case len(words) != 1:
	case words[0] == "stop" && w.stopped != nil:
		w.stop.Store(true)
		err := <-w.stopped
		w.stopped = nil
		return strconv.Itoa(w.made), err
	case words[0] == "hash":
		return w.hash()
	case words[0] == "check":
		return "right", w.check()
	}
	return "", fmt.Errorf("unknown request %q", words)
}

func seeded(word string) (*rand.Rand, error) {
	seed, err := strconv.ParseUint(word, 10, 64)
	return rand.New(rand.NewPCG(seed, 1)), err
}

// run makes changes beside the requests, until it is stopped.
func (w *world) run(rng *rand.Rand) {
	w.stop.Store(false)
	w.stopped = make(chan error, 1)
	go func(done chan<- error) {
		for !w.stop.Load() {
			if err := w.update(rng, 1); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}(w.stopped)
}

// perFile is how many changes of memory there are for each of the tree.
const perFile = 8

// update makes n changes.
func (w *world) update(rng *rand.Rand, n int) error {
	for range n {
		var err error
		if rng.IntN(perFile) == 0 {
			err = w.tree.change(rng)
		} else {
			err = w.areas[w.pick(rng)].change(rng)
		}
		if err != nil {
			return fmt.Errorf("change %d: %w", w.made, err)
		}
		w.made++
	}
	return nil
}

// pick chooses an area; the first one, which has half of the pages, half of the time.
func (w *world) pick(rng *rand.Rand) int { return max(0, rng.IntN(2*len(w.areas))-len(w.areas)) }

func (w *world) hash() (string, error) {
	h := sha256.New()
	for i, a := range w.areas {
		fmt.Fprintf(h, "area %d of %d bytes\n", i, len(a.mem))
		_, _ = h.Write(a.mem) // never fails
	}
	disk, err := w.tree.hash()
	return fmt.Sprintf("%x %x %d", h.Sum(nil), disk, w.made), err
}

func (w *world) check() error {
	for i, a := range w.areas {
		if err := a.check(); err != nil {
			return fmt.Errorf("area %d: %w", i, err)
		}
	}
	return w.tree.check(w.areas)
}
