// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"sync"

	"github.com/opencomputer/oc/internal/engine"
)

// keptBases bounds the hashes that are kept, in bytes: those of 4 GiB of memory. The
// server has little else in memory.
const keptBases = 8 << 20

// bases keeps the hashes of the checkpoints that this process stored last. The next
// capture of the same sandbox is compared with them, and waits for them before it
// freezes anything.
type bases struct {
	mu   sync.Mutex
	kept []keptBase // the newest last
}

type keptBase struct {
	object string
	base   *engine.Base
}

func (b keptBase) bytes() int {
	const hash, pageRange = 8, 24
	return hash*len(b.base.Hashes) + pageRange*len(b.base.Ranges)
}

// add keeps the base that an object is, in the place of the oldest ones.
func (k *bases) add(object string, b *engine.Base) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = append(k.kept, keptBase{object, b})
	room := keptBases
	for i, b := range slices.Backward(k.kept) {
		if room -= b.bytes(); room < 0 {
			k.kept = slices.Delete(k.kept, 0, i+1)
			return
		}
	}
}

// get gives the base that an object is, nil where it is not kept.
func (k *bases) get(object string) *engine.Base {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.kept {
		if b.object == object {
			return b.base
		}
	}
	return nil
}
