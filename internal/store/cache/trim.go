// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"syscall"
)

// onDisk is a pack as its directory shows it.
type onDisk struct {
	name  string
	bytes int64     // allocated, of both files
	used  time.Time // last opened, closed or written
}

// Trim evicts the packs that were not used for longest, never one in use, until
// the cache is no larger than its limit, and gives the bytes that it freed. It
// stays larger if what is in use is. Any number of processes may trim at once.
func (c *Cache) Trim(ctx context.Context) (freed int64, err error) {
	c.trimming.Lock()
	defer c.trimming.Unlock()
	if freed, err = c.trim(ctx); err != nil {
		return freed, fmt.Errorf("cache: trim: %w", err)
	}
	return freed, nil
}

// trim is Trim with the lock held.
func (c *Cache) trim(ctx context.Context) (freed int64, err error) {
	c.written.Store(0)
	packs, err := c.scan()
	if err != nil {
		return 0, err
	}
	var total int64
	for _, p := range packs {
		total += p.bytes
	}
	slices.SortFunc(packs, func(a, b onDisk) int { return a.used.Compare(b.used) })
	for _, p := range packs {
		if total-freed <= c.limit {
			break
		}
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		gone, err := c.evict(p.name)
		if err != nil {
			return freed, err
		}
		if gone {
			freed += p.bytes
		}
	}
	return freed, nil
}

// Stats gives what is on disk now, and this process's counters.
func (c *Cache) Stats() (Stats, error) {
	packs, err := c.scan()
	if err != nil {
		return Stats{}, fmt.Errorf("cache: %w", err)
	}
	s := Stats{Packs: len(packs), Hits: c.hits.Load(), Misses: c.misses.Load(), Damaged: c.damaged.Load()}
	for _, p := range packs {
		s.Bytes += p.bytes
	}
	return s, nil
}

// scan lists the packs of the directory. Files of other names are not ours and
// are left alone; files that go meanwhile are left out.
func (c *Cache) scan() ([]onDisk, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	found := map[string]onDisk{}
	for _, e := range entries {
		name, isSums := strings.CutSuffix(e.Name(), sumsSuffix)
		if checkName(name) != nil || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		p := found[name]
		p.name = name
		p.bytes += allocated(info)
		if isSums || p.used.IsZero() { // the page file's time serves where the sums are missing
			p.used = info.ModTime()
		}
		found[name] = p
	}
	packs := make([]onDisk, 0, len(found))
	for _, p := range found {
		packs = append(packs, p)
	}
	return packs, nil
}

// allocated is what a file takes of the disk; it is sparse.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
