// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/format"
)

// A table that claims more pages than any sandbox has, all zero, so that nothing
// is stored of them, gets no memory for them.
func TestBaseOfClaimedZeros(t *testing.T) {
	t.Parallel()
	x := newExhibit(t)
	s := openStore(t, x.b) // which has not written it
	im, err := s.Image(t.Context(), x.ids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	f := &im.table.Files[pagesFile]
	f.Runs = append(f.Runs, format.Run{Page: f.Pages(), Segment: format.Zero})
	f.Size = (f.Pages() + maxZeros + 1) * format.PageSize
	if b, err := im.Base(t.Context()); !fault.Is(err, fault.Damaged) {
		t.Errorf("it is given: %v, %v", b != nil, err)
	}
	if r, err := s.Image(t.Context(), x.ids[0]); err != nil {
		t.Error(err)
	} else {
		defer r.Close()
		if _, err := r.Base(t.Context()); err != nil {
			t.Errorf("without the claim: %v", err)
		}
	}
}

// footer is a bucket whose packs end with a footer.
type footer struct {
	bucket.Bucket
	tail []byte
}

func (f footer) ReadAt(_ context.Context, _ string, p []byte, _ int64) error {
	copy(p, f.tail)
	return nil
}

// An index larger than any object that a store writes is not read.
func TestIndexOfClaimedSize(t *testing.T) {
	t.Parallel()
	tail := format.EndPack(nil, nil)
	binary.LittleEndian.PutUint32(tail, bucket.MaxObject+1)
	v := &vault{b: footer{tail: tail}}
	if _, err := v.packIndex(t.Context(), "packs/a/b", 1<<40); !errors.Is(err, format.ErrFormat) {
		t.Errorf("it is read: %v", err)
	}
}
