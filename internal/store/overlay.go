// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"io"
	"sort"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/store/format"
)

// Overlay gives the whole pages file of a capture that holds only what differs
// from its base.
func Overlay(c *engine.Capture, base *Image) io.ReaderAt {
	return &overlay{c: c, base: base.File(FilePages), ids: identify(base.ranges), own: identifyRanges(c.Ranges)}
}

type overlay struct {
	c    *engine.Capture
	base File
	ids  *identities
	own  []span // the capture's ranges, by page
}

func identifyRanges(ranges []engine.PageRange) []span {
	out := make([]span, 0, len(ranges))
	page := int64(0)
	for _, r := range ranges {
		out = append(out, span{r, page})
		page += int64(r.Length) / format.PageSize
	}
	return out
}

// ReadAt implements io.ReaderAt.
func (o *overlay) ReadAt(p []byte, off int64) (n int, err error) {
	if rest := o.c.PagesSize - off; int64(len(p)) > rest {
		p, err = p[:max(rest, 0)], io.EOF
	}
	for n < len(p) {
		k, e := o.readPart(p[n:], off+int64(n))
		if e != nil {
			return n, e
		}
		n += k
	}
	return n, err
}

// readPart reads from an offset as much as lies together.
func (o *overlay) readPart(p []byte, off int64) (int, error) {
	page, skip := off/format.PageSize, off%format.PageSize
	room := func(pages int64) int { return int(min(int64(len(p)), pages*format.PageSize-skip)) }
	copied := o.c.Copied
	i := sort.Search(len(copied), func(i int) bool { return copied[i].Page > page }) - 1
	if i >= 0 && page < copied[i].Page+copied[i].Count {
		n := room(copied[i].Page + copied[i].Count - page)
		return io.ReadFull(io.NewSectionReader(o.c.Pages, copied[i].At+(page-copied[i].Page)*format.PageSize+skip, int64(n)), p[:n])
	}
	until := int64(1) << 62
	if i+1 < len(copied) {
		until = copied[i+1].Page
	}
	s := o.own[sort.Search(len(o.own), func(k int) bool { return o.own[k].page > page })-1]
	at, rest := o.ids.find(s.Source, s.Offset+uint64(page-s.page)*format.PageSize)
	rest = min(rest, until-page, s.page+int64(s.Length)/format.PageSize-page)
	if rest <= 0 {
		return 0, fmt.Errorf("store: page %d of the capture is in neither it nor its base", page)
	}
	n := room(rest)
	return io.ReadFull(io.NewSectionReader(o.base, at*format.PageSize+skip, int64(n)), p[:n])
}
