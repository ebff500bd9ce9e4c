// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/index"
)

const (
	// packBytes is how large a pack gets: few enough requests, and little to be
	// written again when one is lost.
	packBytes = 16 << 20
	// indexRoom is for the index of most packs.
	indexRoom = 1 << 20
	// packsInFlight are being written at a time.
	packsInFlight = 2
	// maxBases bounds how many checkpoints a new one pins.
	maxBases = 32
	// worthwhile is how many pages a pinned checkpoint must save: pinning is a
	// request.
	worthwhile = 16
)

var encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), // what is stored has a better hash
	zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0))) // only options can fail

// placed is a segment and the pack that it is in.
type placed struct {
	format.Segment
	pack string
}

// hint is where the index believes a page to be.
type hint struct {
	page int32 // number in the put
	at   index.Location
}

// find tells pages that the capture has twice, and asks the index for the
// others.
func (p *put) find() {
	first := make(map[uint64]int32, len(p.hashes)/2)
	var wanted []format.Hash
	var numbers []int32
	p.twins = make([]int32, len(p.hashes))
	for i, w := range p.where {
		p.twins[i] = -1
		if w.segment != freshPlace {
			continue
		}
		k := binary.LittleEndian.Uint64(p.hashes[i][:])
		if j, ok := first[k]; ok && p.hashes[j] == p.hashes[i] {
			p.twins[i] = j
			continue
		}
		first[k] = int32(i)
		wanted, numbers = append(wanted, p.hashes[i]), append(numbers, int32(i))
	}
	p.s.index.Lookup(wanted, func(i int, at index.Location) {
		p.hints = append(p.hints, hint{numbers[i], at})
	})
}

// bases chooses the checkpoints to pin: that of the base, and those that hold
// most of the pages that were found.
func (p *put) bases() []string {
	var pins []string
	if p.req.Base != nil {
		pins = append(pins, p.req.Base.id)
	}
	p.spoiled = p.s.catalog.listed(p.req.Distrust)
	pages := map[string]int{} // by pack
	names := map[uint32]string{}
	for _, h := range p.hints {
		name, ok := names[h.at.Pack]
		if !ok {
			name, _, _ = p.s.index.Pack(h.at.Pack)
			names[h.at.Pack] = name
		}
		if p.trusts(name) {
			pages[name]++
		}
	}
	return p.s.catalog.cover(pins, pages, p.req.Manifest, p.req.Distrust, p.s.spoiled.hasOf)
}

// trusts tells whether hints may lead to a pack.
func (p *put) trusts(pack string) bool { return !p.spoiled[pack] && !p.s.spoiled.has(pack) }

// usable gives the packs that this checkpoint may refer to.
func (p *put) usable() (map[string]bool, error) {
	usable := map[string]bool{}
	gone := p.req.Base != nil
	for _, b := range p.w.Bases() {
		gone = gone && b.ID != p.req.Base.id
		for _, pack := range b.Packs {
			usable[pack] = true
		}
	}
	if gone {
		return nil, errBaseGone
	}
	return usable, nil
}

// settle decides where the pages are that need not be stored.
func (p *put) settle(usable map[string]bool) {
	type key struct {
		pack    uint32
		segment int
	}
	known := map[key]int32{}
	tables := map[uint32]*format.Table{}
	for _, h := range p.hints {
		t, ok := tables[h.at.Pack]
		if !ok {
			if name, raw, ok := p.s.index.Pack(h.at.Pack); ok && usable[name] && p.trusts(name) {
				t, _ = format.DecodeTable(raw) // a hint that cannot be read is none
			}
			tables[h.at.Pack] = t
		}
		if t == nil || h.at.Segment >= len(t.Segments) || h.at.Slot >= int(t.Segments[h.at.Segment].Pages) {
			continue
		}
		k := key{h.at.Pack, h.at.Segment}
		n, ok := known[k]
		if !ok {
			n = int32(len(p.segments))
			known[k] = n
			p.segments = append(p.segments, placed{t.Segments[h.at.Segment], t.Packs[0]})
		}
		p.where[h.page] = place{n, uint16(h.at.Slot)}
	}
	for i, w := range p.where {
		if w.segment == freshPlace && p.twins[i] < 0 {
			p.fresh = append(p.fresh, int32(i))
		}
	}
}

// job is a segment on its way into a pack.
type job struct {
	pages  []int32 // numbers
	raw    *[]byte
	out    *[]byte // what stored may be in
	stored []byte
	codec  format.Codec
	err    error
	done   chan struct{}
}

// store groups the fresh pages into segments, compresses them on all CPUs, and
// writes them, in order, to packs.
func (p *put) store(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	work, queue := make(chan *job), make(chan *job, 2*workers)
	g.Go(func() error {
		defer close(work)
		defer close(queue)
		for pages := range slices.Chunk(p.fresh, format.SegmentPages) {
			j := &job{pages: pages, done: make(chan struct{})}
			for _, to := range []chan *job{queue, work} {
				select {
				case to <- j:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for j := range work {
				j.err = p.compress(j)
				close(j.done)
			}
			return nil
		})
	}
	g.Go(func() error { return p.pack(ctx, queue) })
	if err := g.Wait(); err != nil {
		return err
	}
	for i, j := range p.twins {
		if j >= 0 {
			p.where[i] = p.where[j]
		}
	}
	return nil
}

func (p *put) compress(j *job) error {
	j.raw = p.s.buffers.Get().(*[]byte)
	b := (*j.raw)[:len(j.pages)*format.PageSize]
	for i, n := range j.pages {
		s := p.source(int(n))
		if err := s.read(b[i*format.PageSize:][:format.PageSize], int(n)); err != nil {
			return err
		}
	}
	j.stored, j.codec = b, format.Raw
	j.out = p.s.buffers.Get().(*[]byte)
	if z := encoder.EncodeAll(b, (*j.out)[:0]); len(z) < len(b)-len(b)/32 {
		j.stored, j.codec = z, format.Zstd
	}
	return nil
}

// source finds the source of a numbered page.
func (p *put) source(n int) *source {
	i, _ := slices.BinarySearchFunc(p.sources, n, func(s source, n int) int {
		if s.first+int(s.count) <= n {
			return -1
		}
		return 1
	})
	return &p.sources[i]
}

// openPack is the pack that is being filled.
type openPack struct {
	name   string
	b      []byte
	pages  uint32
	index  []format.PackedSegment
	table  format.Table
	cached *cached
}

// packedPack is what the index learns of a pack that was written.
type packedPack struct {
	name   string
	table  []byte
	hashes [][]format.Hash // of each segment's pages
}

// pack appends segments in their order to packs, and writes these.
func (p *put) pack(ctx context.Context, queue <-chan *job) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(packsInFlight)
	free := make(chan []byte, packsInFlight+1)
	for range cap(free) {
		free <- nil
	}
	var o *openPack
	flush := func() {
		if o != nil {
			full := o
			g.Go(func() error {
				defer func() { free <- full.b[:0] }()
				return p.flush(ctx, full)
			})
			o = nil
		}
	}
	for j := range queue {
		select {
		case <-j.done:
		case <-ctx.Done():
			return cmp.Or(g.Wait(), ctx.Err()) // the cause
		}
		if j.err != nil {
			return errors.Join(j.err, g.Wait())
		}
		if o == nil {
			b := <-free
			if b == nil {
				b = make([]byte, 0, packBytes+2*format.SegmentPages*format.PageSize+indexRoom)
			}
			name, err := p.w.NewPack()
			if err != nil {
				return errors.Join(err, g.Wait())
			}
			o = &openPack{name: name, b: format.BeginPack(b), cached: p.s.vault.pack(name)}
		}
		p.append(o, j)
		p.s.buffers.Put(j.raw)
		p.s.buffers.Put(j.out)
		if len(o.b) >= packBytes {
			flush()
		}
	}
	flush()
	return g.Wait()
}

func (p *put) append(o *openPack, j *job) {
	stored := p.s.vault.seal(j.stored, o.name, uint64(o.pages))
	s := format.Segment{
		Offset: int64(len(o.b)), Size: uint32(len(stored)), First: o.pages, Pages: uint16(len(j.pages)),
		Codec: j.codec, Sum: blake3.Sum256(stored),
	}
	o.b = append(o.b, stored...)
	hashes := make([]format.Hash, len(j.pages))
	for i, n := range j.pages {
		hashes[i] = p.hashes[n]
		p.where[n] = place{int32(len(p.segments)), uint16(i)}
	}
	o.index = append(o.index, format.PackedSegment{Size: s.Size, Codec: s.Codec, Sum: s.Sum, Hashes: hashes})
	o.table.Segments = append(o.table.Segments, s)
	p.segments = append(p.segments, placed{s, o.name})
	if !p.s.vault.direct(j.codec) {
		o.cached.Write((*j.raw)[:len(j.pages)*format.PageSize], int(o.pages))
	}
	o.pages += uint32(len(j.pages))
	p.report(len(j.pages))
}

func (p *put) flush(ctx context.Context, o *openPack) error {
	o.cached.close()
	o.b = format.EndPack(o.b, p.s.vault.seal(format.EncodeIndex(o.index), o.name, indexPart))
	if err := p.w.Put(ctx, o.name, o.b); err != nil {
		return err
	}
	o.table.Packs = []string{o.name}
	packed := packedPack{name: o.name, table: o.table.Encode()}
	for _, s := range o.index {
		packed.hashes = append(packed.hashes, s.Hashes)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.added += int64(len(o.b))
	p.packed = append(p.packed, packed)
	return nil
}

// report tells progress; pages that need not be stored are done from the start.
func (p *put) report(pages int) {
	p.done += int64(pages)
	if p.req.Progress != nil {
		p.req.Progress(p.done*format.PageSize, int64(len(p.fresh))*format.PageSize)
	}
}
