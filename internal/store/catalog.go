// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"maps"
	"slices"
	"sync"
)

// catalog is what a server remembers of the checkpoints in the bucket, to choose
// which ones a new checkpoint may refer to. It is only a hint: what it names is
// pinned and looked at before it is relied upon.
type catalog struct {
	mu      sync.Mutex
	objects map[string]*known
	holders map[string][]string // ids of the objects that list a pack of pages
}

type known struct {
	checkpoint    string   // the id that users see
	packs         []string // of pages
	build, image  string
	engine, erofs *Blob
}

func newCatalog() *catalog {
	return &catalog{objects: map[string]*known{}, holders: map[string][]string{}}
}

// add remembers a committed object and which of the keys that it lists are packs
// of pages: those that its manifest does not name itself.
func (c *catalog) add(id string, keys []string, m *Manifest) {
	own := m.objects()
	packs := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return slices.Contains(own, k) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objects[id] != nil {
		return
	}
	k := &known{checkpoint: m.Checkpoint, packs: packs, build: m.Build, image: m.ImageHash, engine: m.Engine, erofs: m.Image}
	c.objects[id] = k
	for _, p := range packs {
		c.holders[p] = append(c.holders[p], id)
	}
}

// remove forgets an object, and gives the packs that no other one lists.
func (c *catalog) remove(id string) (gone []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.objects[id]
	if k == nil {
		return nil
	}
	delete(c.objects, id)
	for _, p := range k.packs {
		left := slices.DeleteFunc(c.holders[p], func(h string) bool { return h == id })
		if c.holders[p] = left; len(left) == 0 {
			delete(c.holders, p)
			gone = append(gone, p)
		}
	}
	return gone
}

// list gives the ids that users see of the objects that are remembered.
func (c *catalog) list() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]string{}
	for id, k := range c.objects {
		out[id] = k.checkpoint
	}
	return out
}

// listed gives the packs of pages that any of the objects lists.
func (c *catalog) listed(ids []string) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	packs := map[string]bool{}
	for _, id := range ids {
		if k := c.objects[id]; k != nil {
			for _, p := range k.packs {
				packs[p] = true
			}
		}
	}
	return packs
}

// cover adds to pins objects that list the packs in which most pages were found,
// and that keep the files that the manifest needs; none of distrust for those, nor
// with a spoiled file.
func (c *catalog) cover(pins []string, pages map[string]int, m Manifest, distrust []string, spoiled func(*Blob) bool) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	covered := map[string]bool{}
	pin := func(id string) {
		if !slices.Contains(pins, id) {
			pins = append(pins, id)
		}
		if k := c.objects[id]; k != nil {
			for _, p := range k.packs {
				covered[p] = true
			}
		}
	}
	for _, id := range slices.Clone(pins) {
		pin(id)
	}
	packs := slices.SortedFunc(maps.Keys(pages), func(a, b string) int {
		return cmp.Or(cmp.Compare(pages[b], pages[a]), cmp.Compare(a, b))
	})
	for _, p := range packs {
		if len(pins) >= maxBases || pages[p] < worthwhile {
			break
		}
		if holders := c.holders[p]; !covered[p] && len(holders) > 0 {
			pin(holders[len(holders)-1])
		}
	}
	for _, f := range [][2]string{{kindEngine, m.Build}, {kindImage, m.ImageHash}} {
		has := func(id string) bool {
			b := c.objects[id].blob(f[0], f[1])
			return b != nil && !spoiled(b) && !slices.Contains(distrust, id)
		}
		if slices.ContainsFunc(pins, has) {
			continue
		}
		for id := range c.objects {
			if has(id) {
				pin(id)
				break
			}
		}
	}
	return pins
}

// needs tells whether a key is a pack of pages that a remembered checkpoint
// lists.
func (c *catalog) needs(pack string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.holders[pack]) > 0
}

// name gives the id that users see of an object, or its own if that is not
// known.
func (c *catalog) name(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.objects[id]; k != nil {
		return k.checkpoint
	}
	return id
}

// blob gives the file of the kind and hash that an object keeps, or nil.
func (c *catalog) blob(id, kind, sum string) *Blob {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[id].blob(kind, sum)
}

func (k *known) blob(kind, sum string) *Blob {
	switch {
	case k == nil:
		return nil
	case kind == kindEngine && k.build == sum:
		return k.engine
	case kind == kindImage && k.image == sum:
		return k.erofs
	}
	return nil
}
