// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/refs"
)

// PutRequest is a capture to be stored.
type PutRequest struct {
	// Manifest says what it is; what the store fills in may be missing.
	Manifest Manifest
	Capture  *engine.Capture
	// Base is the image that the capture is based on; nil if it holds all pages.
	Base *Image
	// EnginePath and ImagePath are the files of the build that wrote it and of
	// the EROFS image that it runs on; kept with it, if no other checkpoint has
	// them. "" is neither.
	EnginePath, ImagePath string
	// Distrust are objects of checkpoints known to be damaged: whatever packs they
	// list, the capture's pages are stored anew rather than looked for there.
	Distrust []string
	// Progress, if not nil, is told the bytes of the capture that are done, and all.
	Progress func(done, total int64)
}

// Put stores a capture as a new object of the store, whose id it gives. When it
// returns without error the checkpoint is durable and complete. After an error
// nothing refers to what was written of it, which the next Sweep removes; where
// the disk is full that is an Unavailable fault.
func (s *Store) Put(ctx context.Context, req PutRequest) (id string, _ *Manifest, err error) {
	if req.Base != nil && slices.Contains(req.Distrust, req.Base.id) { // found since the capture began
		return "", nil, fault.New(fault.Unavailable, "the checkpoint that this one builds on was found damaged meanwhile").
			WithHint("try again: everything is stored anew then")
	}
	p := &put{s: s, req: req, key: s.vault.dedupKey(req.Manifest.Org)}
	if err := p.hash(ctx); err != nil {
		return "", nil, err
	}
	p.find()
	p.w, err = s.refs.Begin(ctx, p.bases(), p.blobs)
	if err != nil {
		return "", nil, noSpace(err, req.Manifest.Checkpoint)
	}
	m, err := p.write(p.w.Context())
	if errors.Is(err, errBaseGone) { // so what it has of the base is stored anew
		if err := p.abort(ctx); err != nil {
			return "", nil, err
		}
		whole := *req.Capture
		whole.Pages, whole.Copied = Overlay(req.Capture, req.Base), nil
		req.Capture, req.Base = &whole, nil
		return s.Put(ctx, req)
	}
	if errors.Is(err, refs.ErrUnknown) { // it failed for whoever asked, so it must not be there
		s.wg.Go(func() { s.undo(p.w.ID()) })
	}
	if err != nil {
		_ = p.abort(ctx) // it expires by itself
		return "", nil, noSpace(err, req.Manifest.Checkpoint)
	}
	s.learn(p.w.ID(), p.refers, m, p.packed)
	s.vault.bases.add(p.w.ID(), &engine.Base{Ranges: req.Capture.Ranges, Hashes: p.cheap, Seed: p.seed})
	return p.w.ID(), m, nil
}

// abortTime bounds how long a failure, or the end of a use, waits for a bucket that
// is away.
const abortTime = 10 * time.Second

func (p *put) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	return p.w.Abort(ctx)
}

var errBaseGone = errors.New("store: the base was deleted meanwhile")

// put is a Put in progress. The pages that the capture holds are numbered: those
// of state, of meta, and the copied ones of pages.
type put struct {
	s    *Store
	req  PutRequest
	key  [32]byte
	w    *refs.Writer
	seed uint64 // of the cheap hashes
	base *engine.Base

	sources []source
	hashes  []format.Hash // of each page; of one that is all zero the zero value
	cheap   []uint64      // of the pages of the pages file
	where   []place       // of each page
	twins   []int32       // for each page, an earlier one of the same contents, or -1
	hints   []hint
	spoiled map[string]bool // packs of what the request distrusts
	fresh   []int32         // pages to be stored, in order
	done    int64           // of them

	segments []placed // that places refer to
	refers   []string // packs and other objects of the checkpoint

	mu     sync.Mutex // guards what is below
	added  int64
	packed []packedPack
}

// place is where a page is.
type place struct {
	segment int32 // index in put.segments, or one of those below
	slot    uint16
}

const (
	zeroPlace  = -1 // nowhere: it is all zero
	freshPlace = -2 // to be stored
)

// source is a run of numbered pages.
type source struct {
	file  int
	page  int64 // number in the file
	count int64
	from  io.ReaderAt
	at    int64
	size  int64 // bytes that there are; the rest of the last page is zero
	first int   // number of the first
}

func (p *put) plan() {
	c := p.req.Capture
	add := func(file int, page, count int64, from io.ReaderAt, at, size int64) {
		if count == 0 {
			return
		}
		n := 0
		if k := len(p.sources); k > 0 {
			n = p.sources[k-1].first + int(p.sources[k-1].count)
		}
		p.sources = append(p.sources, source{file, page, count, from, at, size, n})
	}
	whole := func(file int, from io.ReaderAt, size int64) { add(file, 0, pagesOf(size), from, 0, size) }
	whole(0, c.State, c.StateSize)
	whole(1, c.Meta, c.MetaSize)
	if c.Copied == nil {
		whole(pagesFile, c.Pages, c.PagesSize)
	}
	for _, r := range c.Copied {
		add(pagesFile, r.Page, r.Count, c.Pages, r.At, r.Count*format.PageSize)
	}
	n := 0
	if k := len(p.sources); k > 0 {
		n = p.sources[k-1].first + int(p.sources[k-1].count)
	}
	p.hashes = make([]format.Hash, n)
	p.where = make([]place, n)
	p.cheap = make([]uint64, pagesOf(c.PagesSize))
}

func pagesOf(size int64) int64 { return (size + format.PageSize - 1) / format.PageSize }

// read reads numbered pages that lie in one source into b.
func (s *source) read(b []byte, first int) error {
	off := int64(first-s.first) * format.PageSize
	n := min(int64(len(b)), s.size-off)
	clear(b[n:])
	if k, err := s.from.ReadAt(b[:n], s.at+off); int64(k) < n {
		return fmt.Errorf("store: reading the capture at %d: %w", s.at+off, err)
	}
	return nil
}

// hashChunk is how many pages are hashed at a time.
const hashChunk = 256

// hash identifies all pages that the capture holds, on all CPUs.
func (p *put) hash(ctx context.Context) error {
	p.plan()
	var err error
	if p.req.Base != nil {
		if p.base, err = p.req.Base.Base(ctx); err != nil {
			return err
		}
		p.seed = p.base.Seed
	} else {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		p.seed = binary.LittleEndian.Uint64(b[:])
	}
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range p.sources {
		s := &p.sources[i]
		for k := int64(0); k < s.count && ctx.Err() == nil; k += hashChunk {
			g.Go(func() error { return p.hashPages(s, s.first+int(k), int(min(hashChunk, s.count-k))) })
		}
	}
	return errors.Join(g.Wait(), parent.Err())
}

func (p *put) hashPages(s *source, first, n int) error {
	buf := p.s.buffers.Get().(*[]byte)
	defer p.s.buffers.Put(buf)
	b := (*buf)[:n*format.PageSize]
	if err := s.read(b, first); err != nil {
		return err
	}
	h, err := blake3.NewKeyed(p.key[:])
	if err != nil {
		return err
	}
	for i := range n {
		page := b[i*format.PageSize:][:format.PageSize]
		p.where[first+i] = place{segment: freshPlace}
		if isZero(page) {
			p.where[first+i].segment = zeroPlace
		} else {
			h.Reset()
			_, _ = h.Write(page)
			h.Sum(p.hashes[first+i][:0])
		}
		if s.file == pagesFile {
			p.cheap[s.page+int64(first+i-s.first)] = xxh3.HashSeed(page, p.seed)
		}
	}
	return nil
}

var zeroPage [format.PageSize]byte

func isZero(page []byte) bool { return string(page) == string(zeroPage[:]) }

func zeroHash(seed uint64) uint64 { return xxh3.HashSeed(zeroPage[:], seed) }

// write stores what is new and commits it.
func (p *put) write(ctx context.Context) (*Manifest, error) {
	m := p.req.Manifest
	m.Format, m.Version = FormatName, FormatVersion
	usable, err := p.usable()
	if err != nil {
		return nil, err
	}
	p.settle(usable)
	if err := p.store(ctx); err != nil {
		return nil, err
	}
	if m.Engine, err = p.blob(ctx, kindEngine, m.Build, p.req.EnginePath); err != nil {
		return nil, err
	}
	if m.Image, err = p.blob(ctx, kindImage, m.ImageHash, p.req.ImagePath); err != nil {
		return nil, err
	}
	t, err := p.table()
	if err != nil {
		return nil, err
	}
	if m.Table, err = p.object(ctx, encoder.EncodeAll(t.Encode(), nil)); err != nil {
		return nil, err
	}
	if m.Hashes, err = p.object(ctx, format.EncodeHashes(p.seed, p.nonzero(t))); err != nil {
		return nil, err
	}
	if p.s.vault.remote {
		o, err := p.object(ctx, nil) // to be replaced after the first restore
		if err != nil {
			return nil, err
		}
		m.Hot = o.Key
	}
	c := p.req.Capture
	m.SizeBytes, m.AddedBytes, m.CopiedBytes = c.StateSize+c.MetaSize+c.PagesSize, p.added, copiedBytes(c)
	raw, err := encodeManifest(&m)
	if err != nil {
		return nil, err
	}
	raw = p.s.vault.seal(raw, manifestName(p.w.ID()), 0)
	p.refers = append(t.Packs, m.objects()...)
	return &m, p.w.Commit(ctx, p.refers, raw)
}

func copiedBytes(c *engine.Capture) int64 {
	if c.Copied == nil {
		return c.PagesSize
	}
	n := int64(0)
	for _, r := range c.Copied {
		n += r.Count * format.PageSize
	}
	return n
}

// object stores an object of its own.
func (p *put) object(ctx context.Context, b []byte) (Object, error) {
	key, err := p.w.NewPack()
	if err != nil {
		return Object{}, err
	}
	o, err := p.objectAt(ctx, key, b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.added += o.Size
	return o, err
}

func (p *put) objectAt(ctx context.Context, key string, b []byte) (Object, error) {
	b = p.s.vault.seal(b, key, 0)
	return Object{Key: key, Size: int64(len(b)), Blake3: hexSum(b)}, p.w.Put(ctx, key, b)
}

// table makes the table of pages of the capture: its own pages where they were
// stored or found, the rest where the base has them.
func (p *put) table() (*format.Table, error) {
	c := p.req.Capture
	b := newTableBuilder()
	next := 0 // source
	own := func(file int) {
		for ; next < len(p.sources) && p.sources[next].file == file; next++ {
			s := &p.sources[next]
			p.addOwn(b, s)
		}
	}
	b.begin(c.StateSize)
	own(0)
	b.begin(c.MetaSize)
	own(1)
	b.begin(c.PagesSize)
	if c.Copied == nil {
		own(pagesFile)
	} else if err := p.interleave(b, &next); err != nil {
		return nil, err
	}
	for _, r := range c.Ranges {
		b.t.Ranges = append(b.t.Ranges, format.Range(r))
	}
	return &b.t, nil
}

func (p *put) addOwn(b *tableBuilder, s *source) {
	for i := range int(s.count) {
		w := p.where[s.first+i]
		page := s.page + int64(i)
		if w.segment == zeroPlace {
			b.add(page, 1, format.Zero, 0)
			continue
		}
		seg := &p.segments[w.segment]
		b.add(page, 1, b.segment(seg.pack, seg.Segment), int(w.slot))
	}
}

// interleave adds the pages file of a capture that is based on another one.
func (p *put) interleave(b *tableBuilder, next *int) error {
	base := p.req.Base
	ids := identify(base.ranges)
	page := int64(0)
	for _, r := range p.req.Capture.Ranges {
		end := page + int64(r.Length)/format.PageSize
		offset := r.Offset
		for page < end {
			for *next < len(p.sources) && p.sources[*next].page+p.sources[*next].count <= page {
				*next++
			}
			stop := end // of the pages that the base has
			if *next < len(p.sources) {
				s := &p.sources[*next]
				if s.page <= page {
					n := min(end, s.page+s.count) - page
					part := *s
					part.first += int(page - s.page)
					part.page, part.count = page, n
					p.addOwn(b, &part)
					page, offset = page+n, offset+uint64(n)*format.PageSize
					continue
				}
				stop = min(end, s.page)
			}
			at, n := ids.find(r.Source, offset)
			if n = min(n, stop-page); n <= 0 {
				return fmt.Errorf("store: page %d of the capture is in neither it nor its base", page)
			}
			copy(p.cheap[page:page+n], p.base.Hashes[at:at+n])
			b.addFrom(page, base.table, pagesFile, at, at+n)
			page, offset = page+n, offset+uint64(n)*format.PageSize
		}
	}
	return nil
}

// nonzero are the cheap hashes of the pages that are not all zero.
func (p *put) nonzero(t *format.Table) []uint64 {
	f := &t.Files[pagesFile]
	var out []uint64
	for i, r := range f.Runs {
		if r.Segment != format.Zero {
			out = append(out, p.cheap[r.Page:f.End(i)]...)
		}
	}
	return out
}
