// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/store/format"
)

const (
	// hotTime and hotSegments bound what counts as the first reads of a restored
	// sandbox: what it needs to answer.
	hotTime     = 5 * time.Second
	hotSegments = 512
	// hotWrite bounds the writing of the list: who closes an image waits for it.
	hotWrite = 5 * time.Second
)

// hot is the list of a checkpoint's first reads: the first who restores it from a
// remote store leaves it, and for who does later the segments are fetched side by
// side. It is a hint that may be missing, old or wrong.
type hot struct {
	until time.Time

	mu    sync.Mutex
	etag  string       // of the empty object; "" while it is not known to be empty
	order []int        // segments in the order in which they were first read
	seen  map[int]bool // those in order
}

// noteRead remembers a read that somebody waits for.
func (h *hot) noteRead(segment int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seen[segment] || len(h.order) == hotSegments || time.Now().After(h.until) {
		return
	}
	h.seen[segment] = true
	h.order = append(h.order, segment)
}

// list gives what is to be written, and over which version: "" for not at all.
func (h *hot) list() (order []int, etag string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.order) == 0 {
		return nil, ""
	}
	return slices.Clone(h.order), h.etag
}

// warm begins to fetch what was read first the last time, beside all reads, or
// else to remember what is read first now. It is called before the first read.
func (im *Image) warm() {
	if !im.vault.remote || im.vault.cache == nil || im.manifest.Hot == "" {
		return
	}
	im.hot = &hot{until: time.Now().Add(hotTime), seen: map[int]bool{}}
	im.warming.Go(func() {
		raw, etag, err := im.vault.b.Get(im.ctx, im.manifest.Hot)
		if err == nil {
			raw, err = im.vault.open(raw, im.manifest.Hot, 0)
		}
		if err != nil {
			return
		}
		if len(raw) == 0 {
			im.hot.mu.Lock()
			defer im.hot.mu.Unlock()
			im.hot.etag = etag
			return
		}
		if order, err := format.DecodeHot(raw, len(im.table.Segments)); err == nil {
			im.prefetch(order)
		}
	})
}

// prefetch brings segments into the cache.
func (im *Image) prefetch(order []int) {
	var g errgroup.Group // an error is that of the read that needs the segment
	g.SetLimit(im.vault.parallel())
	for _, k := range order {
		s := &im.table.Segments[k]
		if im.ctx.Err() != nil || im.packs[s.Pack].Has(int(s.First), int(s.Pages)) {
			continue
		}
		g.Go(func() error {
			_, err := im.recent.get(k, false, func() ([]byte, error) { return im.fetch(im.ctx, k) })
			return err
		})
	}
	_ = g.Wait()
}

// readAhead is how many segments are fetched before the bulk asks for them: the
// more, the better a link far away is used, and the longer a read that somebody
// waits for stands behind them.
const readAhead = 2

// ahead begins to fetch what the bulk wants after segment k.
func (im *Image) ahead(k int) {
	if !im.vault.remote || im.vault.cache == nil {
		return
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	to := min(k+1+readAhead, len(im.table.Segments))
	for im.next = max(im.next, k+1); im.next < to; im.next++ {
		next := []int{im.next}
		im.warming.Go(func() { im.prefetch(next) })
	}
}

// leaveHot writes the list of first reads, if the object for it is still the
// empty one: so it is written once, and never after its checkpoint was deleted.
func (im *Image) leaveHot() {
	if im.hot == nil {
		return
	}
	order, etag := im.hot.list()
	if etag == "" {
		return
	}
	ctx, cancel := context.WithTimeout(im.ctx, hotWrite)
	defer cancel()
	key := im.manifest.Hot
	_, _ = im.vault.b.Put(ctx, key, im.vault.seal(format.EncodeHot(order), key, 0), bucket.Condition{ETag: etag}) // a hint
}
