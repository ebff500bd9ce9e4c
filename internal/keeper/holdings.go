// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"slices"
	"sync"
)

// holdings is what a keeper holds.
type holdings struct {
	capacity int // descriptors

	mu     sync.Mutex
	byName map[string][]int
	used   int  // descriptors under all names
	sealed bool // stopped: nothing may be put any more
}

func newHoldings(capacity int) *holdings {
	return &holdings{capacity: capacity, byName: map[string][]int{}}
}

// put takes the descriptors, and gives back those that the name held before,
// for the caller to close. Unless the status is OK it takes none.
func (h *holdings) put(name string, fds []int) (old []int, st status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old = h.byName[name]
	used := h.used - len(old) + len(fds)
	if h.sealed || used > h.capacity {
		return nil, statusFull
	}
	h.byName[name], h.used = fds, used
	return old, statusOK
}

// get gives copies of what the name holds, for the caller to close; none when
// it holds nothing.
func (h *holdings) get(name string) ([]int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return dupAll(h.byName[name])
}

// drop gives up what the name holds, for the caller to close.
func (h *holdings) drop(name string) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.byName[name]
	delete(h.byName, name)
	h.used -= len(old)
	return old
}

// list gives the names greater than after, sorted.
func (h *holdings) list(after string) []string {
	h.mu.Lock()
	names := make([]string, 0, len(h.byName))
	for name := range h.byName {
		if name > after {
			names = append(names, name)
		}
	}
	h.mu.Unlock()
	slices.Sort(names)
	return names
}

// seal refuses every later put, if nothing is held; else it gives the number
// of names that are.
func (h *holdings) seal() (names int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.byName) == 0 {
		h.sealed = true
	}
	return len(h.byName)
}

// clear closes everything.
func (h *holdings) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sealed = true
	for name, fds := range h.byName {
		closeAll(fds)
		delete(h.byName, name)
	}
	h.used = 0
}

func (h *holdings) isSealed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sealed
}
