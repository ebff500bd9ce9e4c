// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper takes zombies from the process table that this process inherited and
// nobody waits for. A child that somebody waits for is a zombie only for an
// instant, so one that was a zombie at two calls in a row is nobody's, or one whose
// end does not matter to whoever started it.
type Reaper struct {
	mu   sync.Mutex
	seen map[int]bool
}

// Reap takes the zombies that were there at the last call too. Calls must be
// seconds apart.
func (r *Reaper) Reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := map[int]bool{}
	for _, pid := range zombieChildren() {
		if !r.seen[pid] {
			now[pid] = true
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // gone is as good
	}
	r.seen = now
}

func zombieChildren() (pids []int) {
	for _, pid := range All() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // gone meanwhile
		}
		if st, err := parseStat(b); err == nil && st.state == 'Z' && st.parent == os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
