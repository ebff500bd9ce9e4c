// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/store/refs"
)

// Stats says how much a store holds.
type Stats struct {
	Where        string // a directory or s3://bucket/prefix, without credentials
	Checkpoints  int    // complete ones
	LogicalBytes int64  // sum of the sizes of their states
	StoredBytes  int64  // what is stored for them, and for what they rest on
	CacheBytes   int64  // what the local cache takes now
	CacheLimit   int64  // what it may take; 0: there is none
	Sealed       bool   // what is stored is sealed
}

// Stats looks at all that is in the store.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	out := Stats{Where: s.cfg.Dir, Sealed: s.vault.keys != nil, CacheLimit: s.cfg.CacheBytes}
	if s.cfg.S3 != nil {
		out.Where = s.cfg.S3.URL
	}
	err := s.refs.List(ctx, func(o *refs.Object, err error) error {
		if err != nil || o.State != refs.Committed {
			return ctx.Err() // Check tells of damage
		}
		if m, err := s.vault.manifest(o.ID, o.ID, o.Payload); err == nil {
			out.Checkpoints++
			out.LogicalBytes += m.SizeBytes
		}
		return ctx.Err()
	})
	if err != nil {
		return out, fmt.Errorf("store: %w", err)
	}
	for _, prefix := range append([]string{refs.Prefix}, prefixes...) {
		err := s.vault.list(ctx, prefix, func(o bucket.Object) { out.StoredBytes += o.Size })
		if err != nil {
			return out, err
		}
	}
	if s.vault.cache != nil {
		c, err := s.vault.cache.Stats()
		if err != nil {
			return out, fmt.Errorf("store: %w", err)
		}
		out.CacheBytes = c.Bytes
	}
	return out, nil
}

// list calls visit with all objects below a prefix.
func (v *vault) list(ctx context.Context, prefix string, visit func(bucket.Object)) error {
	for after, more := "", true; more; {
		page, m, err := v.b.List(ctx, prefix, after, 0)
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		for _, o := range page {
			visit(o)
			after = o.Key
		}
		more = m && len(page) > 0
	}
	return nil
}
