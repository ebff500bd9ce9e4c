// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/cli"
	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// worldStorage is the service of where checkpoints are.
type worldStorage struct{ w *world }

// called notes a call that is at its end, and gives what it is to fail with.
func (s worldStorage) called(format string, args ...any) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.stored = fmt.Sprintf(format, args...)
	return s.w.failAfter
}

// tell is a count for who wants it.
func tell(progress func(done, total int64), done, total int64) {
	if progress != nil {
		progress(done, total)
	}
}

func (s worldStorage) owned(orgID, id string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	_, err := worldCheckpoints(s).find(orgID, id)
	return err
}

func (s worldStorage) Verify(_ context.Context, orgID, id string, progress func(done, total int64)) error {
	if err := s.owned(orgID, id); err != nil {
		return err
	}
	tell(progress, 1, 4)
	tell(progress, 4, 4)
	return s.called("verify")
}

func (s worldStorage) Export(_ context.Context, orgID, id string, w io.Writer, progress func(done, total int64)) error {
	s.w.mu.Lock()
	_, err := worldCheckpoints(s).find(orgID, id)
	content := s.w.exported
	s.w.mu.Unlock()
	if err != nil {
		return err
	}
	if len(content) > 0 {
		tell(progress, 0, int64(len(content)))
		if _, err := w.Write(content); err != nil {
			return err
		}
		tell(progress, int64(len(content)), int64(len(content)))
		return s.called("export")
	}
	return nil
}

func (s worldStorage) Import(_ context.Context, orgID, name string, r io.Reader, progress func(done, total int64)) (meta.Checkpoint, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return meta.Checkpoint{}, err
	}
	s.w.mu.Lock()
	s.w.imported = data
	s.w.mu.Unlock()
	if bytes.HasPrefix(data, []byte(fileBegin)) && !bytes.HasSuffix(data, []byte(fileEnd)) {
		return meta.Checkpoint{}, fault.New(fault.Invalid, "the file ends early")
	}
	tell(progress, int64(len(data)), 0)
	cp := meta.Checkpoint{ID: "cp-00000003", OrgID: orgID, SandboxID: "sb-00000003", Name: name, Status: meta.CheckpointReady, CreatedAt: time.Now()}
	return cp, s.called("import %s", name)
}

// An exported file whose end can be told, as that of a real store can.
const fileBegin, fileEnd = "begin", "end"

func (s worldStorage) Convert(ctx context.Context, orgID, id string, progress func(done, total int64)) (meta.Checkpoint, error) {
	tell(progress, 6, 6)
	if err := s.called("convert"); err != nil {
		return meta.Checkpoint{}, err
	}
	return worldCheckpoints(s).Get(ctx, orgID, id)
}

func (s worldStorage) StoreStats(context.Context) (checkpoint.StoreStats, error) {
	return checkpoint.StoreStats{Where: "s3://b/p", Checkpoints: 1, LogicalBytes: 2, StoredBytes: 3, CacheBytes: 4, CacheLimit: 5, Sealed: true}, s.called("stats")
}

// found are problems of both orgs, of nobody's, and of one that is not known.
var found = []checkpoint.StoreProblem{
	{Checkpoint: cpA, Object: "o1", Key: "packs/o1/x", What: "of " + cpA + ": is missing"},
	{Checkpoint: cpB, Object: "o2", Key: "packs/o2/x", What: "of " + cpB + " and " + cpA + ": is missing", Harmless: true},
	{Key: "ckpt/o3", What: "cannot be read"},
	{Checkpoint: "cp-00000009", Key: "ckpt/o4", What: "is of a newer version"},
}

func (s worldStorage) StoreCheck(_ context.Context, readData bool, progress func(done, total int64)) (checkpoint.StoreReport, error) {
	tell(progress, 3, 3)
	return checkpoint.StoreReport{Checkpoints: 1, Packs: 2, Bytes: 3, Leftovers: 4, LeftBytes: 5, Problems: found}, s.called("check %v", readData)
}

func (s worldStorage) StoreRepair(_ context.Context, progress func(done, total int64)) (checkpoint.StoreRepaired, error) {
	tell(progress, 3, 3)
	return checkpoint.StoreRepaired{Done: []string{cpB + " was marked damaged", cpA + " was marked damaged"}, Remaining: found}, s.called("repair")
}

func (s worldStorage) StoreGC(_ context.Context, dryRun bool, progress func(done, total int64)) (checkpoint.StoreSwept, error) {
	tell(progress, 2, 5)
	return checkpoint.StoreSwept{Packs: 1, Bytes: 2, Checkpoints: 3, Expired: 4, Unknown: 5}, s.called("gc %v", dryRun)
}

// TestStorageReaches checks what reaches the service, and the progress that
// comes back.
func TestStorageReaches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx := w.client(keyA), t.Context()
	var counts []client.Progress
	count := func(done, total int64) { counts = append(counts, client.Progress{Done: done, Total: total}) }
	for _, tc := range []struct {
		call   func() error
		stored string
		counts []client.Progress
	}{
		{func() error { _, err := c.VerifyCheckpoint(ctx, cpA, count); return err }, "verify", []client.Progress{{Done: 1, Total: 4}, {Done: 4, Total: 4}}},
		{func() error {
			cp, err := c.ImportCheckpoint(ctx, "a b", strings.NewReader("file"), count)
			if err == nil && cp.ID != "cp-00000003" || string(w.imported) != "file" {
				t.Errorf("imported %+v of %q", cp, w.imported)
			}
			return err
		}, "import a b", []client.Progress{{Done: 4}}},
		{func() error { _, err := c.ConvertCheckpoint(ctx, cpA, count); return err }, "convert", []client.Progress{{Done: 6, Total: 6}}},
		{func() error { _, err := c.StoreStats(ctx); return err }, "stats", nil},
		{func() error { _, err := c.CheckStore(ctx, client.StoreCheckRequest{}, count); return err }, "check false", []client.Progress{{Done: 3, Total: 3}}},
		{func() error { _, err := c.CheckStore(ctx, client.StoreCheckRequest{ReadData: true}, nil); return err }, "check true", nil},
		{func() error { _, err := c.RepairStore(ctx, count); return err }, "repair", []client.Progress{{Done: 3, Total: 3}}},
		{func() error { _, err := c.CollectStore(ctx, client.StoreGCRequest{}, count); return err }, "gc false", []client.Progress{{Done: 2, Total: 5}}},
		{func() error { _, err := c.CollectStore(ctx, client.StoreGCRequest{DryRun: true}, nil); return err }, "gc true", nil},
	} {
		counts = nil
		if err := tc.call(); err != nil || w.stored != tc.stored || !slices.Equal(counts, tc.counts) {
			t.Errorf("%s: %v, called %s, counts %v", tc.stored, err, w.stored, counts)
		}
		// After progress that is an event, with the status in it.
		w.failAtEnd(fault.New(fault.Unavailable, "not now"))
		var e *client.Error
		if err := tc.call(); !errors.As(err, &e) || e.Status != 503 || e.Message != "not now" {
			t.Errorf("%s: %v", tc.stored, err)
		}
		w.failAtEnd(nil)
	}
}

// TestCheckpointCounts watches the making of a checkpoint, and of a sandbox of it;
// who does not watch is not counted for.
func TestCheckpointCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, ctx := w.client(keyA), t.Context()
	var counts []client.Progress
	count := func(done, total int64) { counts = append(counts, client.Progress{Done: done, Total: total}) }
	cp, err := c.CreateCheckpointWatched(ctx, boxA, client.CreateCheckpointRequest{Name: "n"}, count)
	if want := []client.Progress{{}, {Done: 4, Total: 4}}; err != nil || cp.Name != "n" || !slices.Equal(counts, want) {
		t.Errorf("%+v, %v, counts %v", cp, err, counts)
	}
	counts = nil
	res, err := c.SpawnCheckpointWatched(ctx, cpA, client.SpawnRequest{Count: 2}, count)
	if want := []client.Progress{{Done: 5, Total: 5}}; err != nil || len(res.All()) != 2 || !slices.Equal(counts, want) {
		t.Errorf("%+v, %v, counts %v", res, err, counts)
	}
	var e *client.Error
	if _, err := c.SpawnCheckpointWatched(ctx, cpB, client.SpawnRequest{}, count); !errors.As(err, &e) || e.Status != 404 {
		t.Errorf("another org's: %v", err)
	}
	if cp, err := c.CreateCheckpoint(ctx, boxA, client.CreateCheckpointRequest{Name: "n"}); err != nil || cp.Name != "n" || w.lastCP.Progress != nil {
		t.Errorf("not watched: %+v, %v", cp, err)
	}
	if res, err := c.SpawnCheckpoint(ctx, cpA, client.SpawnRequest{}); err != nil || res.ID == "" || w.lastSpawn.Progress != nil {
		t.Errorf("not watched: %+v, %v", res, err)
	}
}

// failAtEnd makes calls of the storage fail when they have done their work; with
// nil they do not.
func (w *world) failAtEnd(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failAfter = err
}

// TestStoreNamesNoOther lets each org see its own checkpoints' ids only.
func TestStoreNamesNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for key, own := range map[string]string{keyA: cpA, keyB: cpB} {
		want := make([]client.StoreProblem, len(found))
		hide := func(text string) string {
			for _, id := range []string{cpA, cpB, "cp-00000009"} {
				if id != own {
					text = strings.ReplaceAll(text, id, client.AnotherOrg)
				}
			}
			return text
		}
		for i, p := range found {
			want[i] = client.StoreProblem{Checkpoint: hide(p.Checkpoint), Object: p.Object, Key: p.Key, What: hide(p.What), Harmless: p.Harmless}
		}
		c := w.client(key)
		r, err := c.CheckStore(t.Context(), client.StoreCheckRequest{}, nil)
		if err != nil || !slices.Equal(r.Problems, want) {
			t.Errorf("%s: %v %+v", key, err, r.Problems)
		}
		done, err := c.RepairStore(t.Context(), nil)
		if err != nil || !slices.Equal(done.Remaining, want) || !slices.Equal(done.Done, []string{hide(cpB + " was marked damaged"), hide(cpA + " was marked damaged")}) {
			t.Errorf("%s: %v %+v", key, err, done)
		}
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(keyA)
	for _, n := range []int{10, 3_000_000} {
		w.exported = bytes.Repeat([]byte("x"), n)
		file, expected, err := c.ExportCheckpoint(t.Context(), cpA)
		if err != nil || expected != int64(n) {
			t.Fatalf("%v, %d bytes expected", err, expected)
		}
		data, err := io.ReadAll(file)
		file.Close()
		if err != nil || !bytes.Equal(data, w.exported) {
			t.Errorf("%d bytes, %v", len(data), err)
		}

		// One that fails after its last byte must not look complete.
		w.failAtEnd(errors.New("the disk is gone"))
		file, _, err = c.ExportCheckpoint(t.Context(), cpA)
		if err == nil {
			_, err = io.ReadAll(file)
			file.Close()
		}
		w.failAtEnd(nil)
		if err == nil {
			t.Errorf("an export of %d bytes that broke off looks complete", n)
		}
	}
	w.failWith(fault.New(fault.Invalid, "checkpoint is damaged").WithHint("delete it"))
	_, _, err := c.ExportCheckpoint(t.Context(), cpA)
	checkError(t, err, 400, "checkpoint is damaged", "delete it")
}

// TestBrokenImport checks what the service and the client see of a file that
// breaks off.
func TestBrokenImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.client(keyA).ImportCheckpoint(t.Context(), "n", io.MultiReader(strings.NewReader("half"), iotestErr{}), nil)
	if err == nil || w.stored != "" {
		t.Errorf("%v, %s", err, w.stored)
	}
}

// TestExportIntoImport pipes one oc into another.
func TestExportIntoImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	whole := []byte(fileBegin + strings.Repeat("state", 400_000) + fileEnd)
	for _, broken := range []bool{false, true} {
		if w.exported = whole; broken {
			w.exported = whole[:len(whole)-len(fileEnd)]
			w.failAtEnd(errors.New("the disk is gone"))
		}
		env := []string{"OPENCOMPUTER_API_URL=" + w.url, "OPENCOMPUTER_API_KEY=" + keyA}
		r, pipe := io.Pipe()
		var exporting sync.WaitGroup
		var exported int
		var said, out, errOut bytes.Buffer
		exporting.Go(func() {
			exported = cli.New().Run(t.Context(), []string{"cp", "export", cpA, "-"}, strings.NewReader(""), pipe, &said, env)
			pipe.Close() // as the shell does, whatever the exit code
			w.failAtEnd(nil)
		})
		imported := cli.New().Run(t.Context(), []string{"cp", "import", "-", "--name", "copy"}, r, &out, &errOut, env)
		r.Close()
		exporting.Wait()
		if broken {
			if exported != cli.ExitGeneral || imported != cli.ExitRequest || !strings.Contains(said.String(), "Error: the export broke off") || !strings.Contains(errOut.String(), "the file ends early") {
				t.Errorf("broken: %d %q, %d %q", exported, said.String(), imported, errOut.String())
			}
		} else if exported != 0 || imported != 0 || said.Len()+errOut.Len() > 0 || !bytes.Equal(w.imported, whole) || !strings.Contains(out.String(), "Name: copy\n") {
			t.Errorf("%d %q, %d %q, %d bytes", exported, said.String(), imported, errOut.String(), len(w.imported))
		}
	}
}

// TestNoStorage is a server without the service.
func TestNoStorage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	srv, err := New(Config{
		Sandboxes: w, Checkpoints: worldCheckpoints{w}, Templates: worldTemplates{w}, Keys: w,
		Log: slog.New(slog.DiscardHandler), SigningKey: []byte(strings.Repeat("k", 32)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range []string{
		"POST /api/checkpoints/" + cpA + "/verify", "GET /api/checkpoints/" + cpA + "/export", "POST /api/checkpoints/import",
		"POST /api/checkpoints/" + cpA + "/convert", "GET /api/store", "POST /api/store/check", "POST /api/store/repair", "POST /api/store/gc",
	} {
		method, path, _ := strings.Cut(route, " ")
		req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader("{}"))
		req.Header.Set("X-API-Key", keyA)
		rec := httptest.NewRecorder()
		srv.ServeHTTP(rec, req)
		if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), "not in a store that can do that") {
			t.Errorf("%s: %d %s", route, rec.Code, rec.Body)
		}
	}
}
