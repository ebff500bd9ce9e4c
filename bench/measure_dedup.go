// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencomputer/oc/internal/store"
)

// dedup is the name of the measure, which takes minutes.
const dedup = "dedup"

// stored is what the checkpoints of a series take, in bytes.
type stored struct {
	series series
	added  []int64 // to our store, by each checkpoint
	raw    int64   // the files of all
	tar    int64   // each as a tar compressed by zstd -1
	restic int64   // all in one restic repository
}

// series makes each series and has the same files stored by others.
func (b *bench) series(ctx context.Context, _ *scene) error {
	for _, s := range append(allSeries(), noise) {
		dir := filepath.Join(b.dir, "series")
		st, err := b.store(ctx, s, dir)
		if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
			return err
		}
		b.stored = append(b.stored, st)
		fmt.Fprintf(b.say, "series %-10s raw %.0f, tar.zst %.1f, restic %.1f MiB; added:", s.name, mib(st.raw), mib(st.tar), mib(st.restic))
		for _, n := range st.added {
			fmt.Fprintf(b.say, " %.2f", mib(n))
		}
		fmt.Fprintln(b.say)
	}
	return nil
}

func (b *bench) store(ctx context.Context, s series, dir string) (stored, error) {
	st := stored{series: s}
	ids, added, err := s.make(ctx, b.opts.binary, filepath.Join(dir, "server"))
	if err != nil {
		return st, err
	}
	st.added = added
	return st, st.rivals(ctx, ids, dir)
}

// rivals has the raw files of the checkpoints, which are in the store of the
// server that was below dir, stored by tar and zstd and by restic. The files of
// one checkpoint are there at a time.
func (st *stored) rivals(ctx context.Context, ids []string, dir string) error {
	index := filepath.Join(dir, "index")
	if err := os.Mkdir(index, 0o700); err != nil {
		return err
	}
	from, err := store.Open(ctx, store.Config{Dir: (&server{dir: filepath.Join(dir, "server")}).store(), State: index}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer from.Close()
	objects := map[string]string{}
	for object, id := range from.List() {
		objects[id] = object
	}
	r, err := newRestic(ctx, dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		raw := filepath.Join(dir, "raw")
		n, err := extract(ctx, from, objects[id], raw)
		if err != nil {
			return err
		}
		st.raw += n
		if n, err = tarBytes(ctx, raw, filepath.Join(dir, "raw.tar.zst")); err != nil {
			return err
		}
		st.tar += n
		if err := r.run(ctx, "backup", raw); err != nil {
			return err
		}
		if err := os.RemoveAll(raw); err != nil {
			return err
		}
	}
	st.restic, err = treeBytes(r.repository())
	return err
}

// extract writes the files of a checkpoint as the engine made them into a new
// directory.
func extract(ctx context.Context, from *store.Store, object, dir string) (size int64, err error) {
	im, err := from.Image(ctx, object)
	if err != nil {
		return 0, err
	}
	defer im.Close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	for _, name := range []string{store.FileState, store.FileMeta, store.FilePages} {
		f := im.File(name)
		to, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(to, io.NewSectionReader(f, 0, f.Size()))
		if err := errors.Join(err, to.Close()); err != nil {
			return 0, err
		}
		size += n
	}
	return size, nil
}

// tarBytes is the size of a directory as an archive, which is made and removed.
func tarBytes(ctx context.Context, dir, archive string) (int64, error) {
	defer os.Remove(archive)
	if err := command(ctx, nil, "tar", "-I", "zstd -q -1", "-cf", archive, "-C", filepath.Dir(dir), filepath.Base(dir)); err != nil {
		return 0, err
	}
	return treeBytes(archive)
}

// restic is a repository of that backup program, with its defaults.
type restic struct{ dir string }

func newRestic(ctx context.Context, dir string) (restic, error) {
	r := restic{dir: dir}
	if err := os.WriteFile(r.password(), []byte("bench\n"), 0o600); err != nil {
		return r, err
	}
	return r, r.run(ctx, "init")
}

func (r restic) repository() string { return filepath.Join(r.dir, "restic") }
func (r restic) password() string   { return filepath.Join(r.dir, "password") }

func (r restic) run(ctx context.Context, args ...string) error {
	return command(ctx, []string{
		"RESTIC_REPOSITORY=" + r.repository(), "RESTIC_PASSWORD_FILE=" + r.password(), "RESTIC_CACHE_DIR=" + filepath.Join(r.dir, "restic-cache"),
	}, "restic", append([]string{"-q"}, args...)...)
}

// command executes a program, with additions to the environment.
func command(ctx context.Context, env []string, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(slices.Clip(os.Environ()), env...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// storedTable writes what was stored as Markdown.
func storedTable(w io.Writer, all []stored) {
	fmt.Fprintln(w, "| series | checkpoints | raw MiB | oc MiB: sum (first + later ones) | tar.zst MiB | restic MiB | oc / tar.zst | oc / restic | later one / first |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, s := range all {
		ours, first := int64(0), s.added[0]
		for _, n := range s.added {
			ours += n
		}
		later := float64(ours-first) / float64(len(s.added)-1)
		fmt.Fprintf(w, "| %s | %d | %s | %s (%s + %d × %s) | %s | %s | %.2f | %.2f | %.3f |\n",
			s.series.what, len(s.added), short(mib(s.raw)), short(mib(ours)), short(mib(first)), len(s.added)-1, short(later/(1<<20)),
			short(mib(s.tar)), short(mib(s.restic)), float64(ours)/float64(s.tar), float64(ours)/float64(s.restic), later/float64(first))
	}
}
