// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/dir"
	"github.com/opencomputer/oc/internal/bucket/s3"
	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/store/cache"
	"github.com/opencomputer/oc/internal/store/format"
	"github.com/opencomputer/oc/internal/store/index"
	"github.com/opencomputer/oc/internal/store/refs"
	"github.com/opencomputer/oc/internal/store/seal"
)

// Config says where a store is. It can be handed to another process as JSON.
type Config struct {
	Dir        string     `json:"dir,omitempty"` // of the bucket, unless it is in S3
	S3         *s3.Config `json:"s3,omitempty"`
	Cache      string     `json:"cache,omitempty"`      // directory of the local cache; "" is none
	CacheBytes int64      `json:"cacheBytes,omitempty"` // what it may take
	KeyFile    string     `json:"keyFile,omitempty"`    // "" is no encryption
	State      string     `json:"-"`                    // directory of what can be made anew: the index
}

// Store keeps checkpoints. There is one in each server; others may use the same
// bucket.
type Store struct {
	cfg     Config
	vault   *vault
	refs    *refs.Log
	index   *index.Index
	catalog *catalog
	spoiled *spoiled
	unread  []string // ids of objects that were there when it was opened, and could not be read
	log     *slog.Logger
	buffers sync.Pool // of hashChunk pages

	ctx    context.Context // of what goes on beside the calls; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Open opens a store, makes one in an empty bucket, and learns what is in it.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	v, err := openVault(ctx, cfg)
	if err != nil {
		return nil, err
	}
	ix, err := index.Open(filepath.Join(cfg.State, "pages"), log)
	if err != nil {
		v.close()
		return nil, fmt.Errorf("store: %w", err)
	}
	s := newStore(cfg, v, ix, log)
	if s.spoiled, err = openSpoiled(filepath.Join(cfg.State, "damaged")); err == nil {
		err = s.survey(ctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	s.wg.Go(func() {
		n, err := s.Reindex(s.ctx, nil)
		if err != nil && s.ctx.Err() == nil {
			log.Warn("the index of pages is not complete: checkpoints store more than they need", "error", err)
		} else if n > 0 {
			log.Info("index of pages completed", "packs", n)
		}
	})
	return s, nil
}

func newStore(cfg Config, v *vault, ix *index.Index, log *slog.Logger) *Store {
	s := &Store{
		cfg: cfg, vault: v, refs: refs.New(v.b, refsConfig), index: ix, catalog: newCatalog(), spoiled: &spoiled{}, log: log,
		buffers: sync.Pool{New: func() any { b := make([]byte, hashChunk*format.PageSize); return &b }},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

var refsConfig = refs.Config{Roots: []string{kindEngine + "/", kindImage + "/"}}

func openVault(ctx context.Context, cfg Config) (_ *vault, err error) {
	v := &vault{}
	if err := v.openBucket(ctx, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if cfg.KeyFile != "" {
		if v.keys, err = seal.LoadKeys(cfg.KeyFile); err != nil {
			return nil, err
		}
	}
	if cfg.Cache != "" {
		if v.cache, err = cache.Open(cfg.Cache, cfg.CacheBytes); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *vault) openBucket(ctx context.Context, cfg Config) error {
	if cfg.S3 == nil {
		b, err := dir.Open(cfg.Dir, durable.Disk{})
		if err != nil {
			return err
		}
		v.b, v.end = b, func() { _ = b.Close() } // what it leaves the next one removes
		return nil
	}
	b, err := s3.Open(ctx, *cfg.S3)
	if err != nil {
		return err
	}
	*cfg.S3 = b.Config() // another process may not have our environment
	v.b, v.end, v.remote = b, b.Close, true
	return nil
}

// Close ends what goes on in the background. Nothing may be asked of the store
// after it, nor of what it opened.
func (s *Store) Close() {
	s.cancel()
	s.wg.Wait()
	_ = s.index.Close() // can be made anew
	s.vault.close()
}

// Location names a checkpoint of this store for Reach, in another process.
func (s *Store) Location(id string) string {
	return mustLocation(s.cfg, id, s.catalog.name(id))
}

func mustLocation(cfg Config, id, name string) string {
	b, _ := json.Marshal(location{Store: cfg, Object: id, Name: name}) // a struct of strings and numbers
	return string(b)
}

type location struct {
	Store  Config `json:"store"`
	Object string `json:"object"`
	Name   string `json:"name"` // the id that users see

	Captured *captured `json:"captured,omitempty"` // it is not stored yet; Object is its base then
}

// Reach opens a checkpoint by its Location, claiming it, or by its directory if
// it is of the first format. files are those that Captured gave with it; they
// are the checkpoint's to close. The base of a capture is opened and claimed beside:
// whoever made the capture keeps its own claim meanwhile.
func Reach(ctx context.Context, where string, files []*os.File) (Checkpoint, error) {
	if filepath.IsAbs(where) {
		return OpenLegacy(where)
	}
	var l location
	if err := json.Unmarshal([]byte(where), &l); err != nil {
		return nil, fmt.Errorf("store: not a location of a checkpoint: %w", err)
	}
	if l.Captured != nil {
		h, err := reachCaptured(ctx, l, files)
		if err != nil {
			return nil, err
		}
		return h, nil
	}
	im, err := reach(ctx, l)
	if err != nil {
		return nil, err
	}
	im.warm()
	return im, nil
}

func reach(ctx context.Context, l location) (*Image, error) {
	v, err := openVault(ctx, l.Store)
	if err != nil {
		return nil, err
	}
	im, err := v.image(ctx, refs.New(v.b, refsConfig), l.Object, l.Name)
	if err != nil {
		v.close()
		return nil, err
	}
	release := im.release
	im.release = func() {
		release()
		v.close()
	}
	return im, nil
}

// Image opens a checkpoint and claims its data: until the image is closed, it
// can be read, also when it is deleted meanwhile. It fails with a Damaged fault,
// or NotFound.
func (s *Store) Image(ctx context.Context, id string) (*Image, error) {
	return s.vault.image(ctx, s.refs, id, s.catalog.name(id))
}

func (v *vault) image(ctx context.Context, log *refs.Log, id, name string) (_ *Image, err error) {
	lease, o, err := log.Read(ctx, id)
	if errors.Is(err, bucket.ErrNotExist) || errors.Is(err, refs.ErrState) {
		return nil, fault.New(fault.NotFound, "checkpoint %s has no data in the store", name)
	}
	if errors.Is(err, refs.ErrDamaged) {
		return nil, Damaged(name, "%v", err)
	}
	if errors.Is(err, refs.ErrNewer) {
		return nil, newer(fault.Wrap(fault.Invalid, err, "checkpoint %s was written by a later release", name))
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	im := &Image{id: id, vault: v, release: func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
		defer cancel()
		_ = lease.Close(ctx) // it expires by itself
	}}
	im.ctx, im.cancel = context.WithCancel(lease.Context())
	defer func() {
		if err != nil {
			im.Close()
		}
	}()
	if im.manifest, err = v.manifest(id, name, o.Payload); err != nil {
		return nil, err
	}
	return im, im.load(ctx)
}

// manifestName is what a manifest is sealed as.
func manifestName(id string) string { return "ckpt/" + id }

// manifest opens the payload of an object; name is the checkpoint's, if known.
func (v *vault) manifest(id, name string, payload []byte) (*Manifest, error) {
	if key, err := seal.KeyOf(payload); err == nil && v.keys.Check(key) != nil {
		return nil, fault.New(fault.Invalid, "checkpoint %s is sealed with the key %s, which the server does not have", name, key).
			WithHint("start the server with --store-keys and a file that has the line of %s; the checkpoint is as it was", key)
	}
	if v.keys != nil && bytes.HasPrefix(payload, []byte("{")) {
		return nil, fault.New(fault.Invalid, "checkpoint %s is not sealed, and the server takes only what is", name).
			WithHint("start the server without --store-keys, and export the checkpoint to one that seals")
	}
	raw, err := v.open(payload, manifestName(id), 0)
	if errors.Is(err, seal.ErrDamaged) {
		return nil, Damaged(name, "its manifest: %v", err)
	}
	if err != nil {
		return nil, fmt.Errorf("store: checkpoint %s: %w", name, err)
	}
	return decodeManifest(name, raw)
}

// load reads the table.
func (im *Image) load(ctx context.Context) error {
	raw, err := im.vault.object(ctx, im.manifest.Checkpoint, im.manifest.Table)
	if err != nil {
		return err
	}
	if raw, err = decoder.DecodeAll(raw, nil); err != nil {
		return Damaged(im.manifest.Checkpoint, "its table of pages: %v", err)
	}
	if im.table, err = format.DecodeTable(raw); err != nil {
		return Damaged(im.manifest.Checkpoint, "%v", err)
	}
	if len(im.table.Files) != len(fileNames) {
		return Damaged(im.manifest.Checkpoint, "its table has %d files", len(im.table.Files))
	}
	im.setTable(im.table)
	return nil
}

// survey remembers what the bucket holds, and forgets what it does not.
func (s *Store) survey(ctx context.Context) error {
	seen := map[string]bool{}
	err := s.refs.List(ctx, func(o *refs.Object, err error) error {
		var m *Manifest
		if err == nil && o.State == refs.Committed {
			m, err = s.vault.manifest(o.ID, o.ID, o.Payload)
		}
		if err != nil {
			s.log.Warn("a checkpoint in the store cannot be read", "object", o.ID, "error", err, "hint", fault.As(err).Hint)
			s.unread = append(s.unread, o.ID)
		} else if m != nil {
			seen[o.ID] = true
			s.catalog.add(o.ID, o.Packs, m)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for id := range s.catalog.list() {
		if !seen[id] {
			s.forget(id)
		}
	}
	return nil
}

// List gives, by the ids of their objects, the ids that users see of the
// complete checkpoints that the store held when it was opened or that this
// process has made since. Of one that cannot be read, for want of its key or
// because it is damaged, that is "".
func (s *Store) List() map[string]string {
	out := s.catalog.list()
	for _, id := range s.unread {
		out[id] = ""
	}
	return out
}

// forget has the next checkpoints not look for what a deleted one held.
func (s *Store) forget(id string) {
	for _, p := range s.catalog.remove(id) {
		_ = s.index.RemovePack(p) // a hint
		if s.vault.cache != nil {
			_, _ = s.vault.cache.Drop(cacheName(p)) // it goes at last when there is no room
		}
	}
}

// learn remembers a new checkpoint. The index is brought up to date beside what
// else goes on.
func (s *Store) learn(id string, packs []string, m *Manifest, packed []packedPack) {
	s.catalog.add(id, packs, m)
	s.wg.Go(func() {
		for _, p := range packed {
			if s.ctx.Err() != nil {
				return
			}
			if err := s.index.AddPack(p.name, p.table, p.hashes); err != nil {
				s.log.Warn("the index of pages could not be brought up to date: later checkpoints store more than they need", "error", err)
				return
			}
		}
		if s.vault.cache != nil {
			_, _ = s.vault.cache.Trim(s.ctx) // or the next one does
		}
	})
}

// Delete has a checkpoint go: nobody can open it any more. What it alone needed
// is freed by the next Sweep, or, if its object is damaged, by the next audit. A
// missing one is nil. It fails with a Conflict while somebody reads one that is
// damaged.
func (s *Store) Delete(ctx context.Context, id string) error {
	err := s.refs.Delete(ctx, id)
	switch {
	case errors.Is(err, refs.ErrState):
		return fault.Wrap(fault.Conflict, err, "it is in use: %v", err)
	case errors.Is(err, refs.ErrNewer):
		return newer(fault.Wrap(fault.Invalid, err, "it was written by a later release: %v", err))
	case err != nil && !errors.Is(err, bucket.ErrNotExist):
		return fmt.Errorf("store: deleting a checkpoint: %w", err)
	}
	s.forget(id)
	return nil
}

// undoEvery is how often undo tries.
const undoEvery = 10 * time.Second

// undo deletes an object of which it is not known whether it was committed, as
// soon as the bucket answers.
func (s *Store) undo(id string) {
	tick := time.NewTicker(undoEvery)
	defer tick.Stop()
	for s.refs.Delete(s.ctx, id) != nil {
		select {
		case <-tick.C:
		case <-s.ctx.Done(): // the next server compares the store with its rows
			return
		}
	}
}

// Sweep frees what no checkpoint needs, and nobody reads or writes.
func (s *Store) Sweep(ctx context.Context, o refs.Options) (refs.Report, error) {
	r, err := s.refs.Sweep(ctx, o)
	switch {
	case errors.Is(err, refs.ErrDamaged):
		return r, fault.Wrap(fault.Damaged, err, "nothing can be freed, for it is not known what this needs: %v", err).
			WithHint("oc store repair moves it out of the way")
	case errors.Is(err, refs.ErrNewer):
		return r, newer(fault.Wrap(fault.Invalid, err, "nothing can be freed, for it is not known what this needs: %v", err))
	case err != nil:
		return r, fmt.Errorf("store: %w", err)
	}
	return r, nil
}

// Has tells whether the store has a checkpoint's object, sound or not.
func (s *Store) Has(ctx context.Context, id string) (bool, error) {
	o, err := s.refs.Get(ctx, id)
	switch {
	case errors.Is(err, bucket.ErrNotExist):
		return false, nil
	case errors.Is(err, refs.ErrDamaged), errors.Is(err, refs.ErrNewer):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("store: %w", err)
	}
	return o.State == refs.Committed, nil
}

// Free is the number of bytes that there is room for, and whether that is known.
func (s *Store) Free() (int64, bool, error) {
	sp, ok := s.vault.b.(bucket.Spacer)
	if !ok {
		return 0, false, nil
	}
	n, err := sp.Free()
	return n, true, err
}

// noSpace turns a full disk into a fault that says so.
func noSpace(err error, id string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(fault.Unavailable, err, "writing checkpoint %s: no space left on the disk of the store", id).
			WithHint("free some space, for instance by deleting checkpoints, and try again")
	}
	if strings.HasPrefix(err.Error(), "store: ") || fault.As(err).Kind != fault.Internal {
		return err
	}
	return fmt.Errorf("store: writing checkpoint %s: %w", id, err)
}
