// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"regexp"

	"github.com/danielgtaylor/huma/v2"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/internal/checkpoint"
	"github.com/opencomputer/oc/internal/fault"
)

// storageRoutes mounts what is about where checkpoints are: single ones, and the
// store as a whole, which is its operator's.
func (s *Server) storageRoutes() {
	progressing(s, "POST /api/checkpoints/{checkpoint}/verify", "Read and check every byte of a checkpoint", http.StatusOK, s.verifyCheckpoint)
	s.raw("GET /api/checkpoints/{checkpoint}/export", "A checkpoint as one file; it is cut off if it fails half way", http.StatusOK, s.exportCheckpoint)
	s.raw("POST /api/checkpoints/import", "Make a checkpoint of the exported file that is the body; name= gives it another name", http.StatusCreated, s.importCheckpoint)
	progressing(s, "POST /api/checkpoints/{checkpoint}/convert", "Move a checkpoint of the first format into the page store", http.StatusOK, s.convertCheckpoint)
	typed(s, "GET /api/store", "How much the store holds", http.StatusOK, s.storeStats)
	progressing(s, "POST /api/store/check", "Look for what is wrong in the store", http.StatusOK, s.checkStore)
	progressing(s, "POST /api/store/repair", "Mend what can be mended without a guess", http.StatusOK, s.repairStore)
	progressing(s, "POST /api/store/gc", "Free what no checkpoint needs", http.StatusOK, s.collectStore)
}

// progressing mounts an operation that takes I and answers with T, and on the
// way with counts of bytes if the client accepts events; otherwise f is given nil.
func progressing[I, T any](s *Server, what, summary string, status int, f func(ctx context.Context, in *I, count func(done, total int64)) (T, error)) {
	op := s.operation(what, summary+"; with Accept: text/event-stream also the progress", status)
	var out T
	s.describeResult(&op, out)
	huma.Register(s.api, op, func(_ context.Context, in *I) (*huma.StreamResponse, error) {
		return s.progressResponse(status, func(ctx context.Context, report reporter) (any, error) {
			return f(ctx, in, report.count)
		}), nil
	})
}

// storage is the service, or a fault if this server has none.
func (s *Server) storage() (Storage, error) {
	if s.cfg.Storage == nil {
		return nil, fault.New(fault.Unavailable, "this server's checkpoints are not in a store that can do that")
	}
	return s.cfg.Storage, nil
}

func (s *Server) verifyCheckpoint(ctx context.Context, in *checkpointInput, count func(done, total int64)) (client.VerifyResult, error) {
	st, err := s.storage()
	if err != nil {
		return client.VerifyResult{}, err
	}
	return client.VerifyResult{ID: in.Checkpoint, Status: "verified"}, st.Verify(ctx, orgOf(ctx), in.Checkpoint, count)
}

func (s *Server) exportCheckpoint(w http.ResponseWriter, r *http.Request) {
	st, err := s.storage()
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	out := newStream(w, octets)
	err = st.Export(r.Context(), orgOf(r.Context()), r.PathValue("checkpoint"), out, func(_, total int64) { out.expected.Store(total) })
	s.endStream(out, r, err)
}

func (s *Server) importCheckpoint(w http.ResponseWriter, r *http.Request) {
	// Progress goes out while the file still comes in.
	_ = http.NewResponseController(w).EnableFullDuplex()
	file := s.upload(w, r, maxImport)
	defer file.finish()
	s.serveProgress(w, r, http.StatusCreated, func(ctx context.Context, report reporter) (any, error) {
		st, err := s.storage()
		if err != nil {
			return nil, err
		}
		cp, err := st.Import(ctx, orgOf(ctx), r.URL.Query().Get("name"), file, report.count)
		return checkpointOut(cp), file.explain(err)
	})
}

func (s *Server) convertCheckpoint(ctx context.Context, in *checkpointInput, count func(done, total int64)) (client.Checkpoint, error) {
	st, err := s.storage()
	if err != nil {
		return client.Checkpoint{}, err
	}
	cp, err := st.Convert(ctx, orgOf(ctx), in.Checkpoint, count)
	return checkpointOut(cp), err
}

func (s *Server) storeStats(ctx context.Context, _ *none) (client.StoreStats, error) {
	st, err := s.storage()
	if err != nil {
		return client.StoreStats{}, err
	}
	stats, err := st.StoreStats(ctx)
	return client.StoreStats(stats), err
}

type checkStoreInput struct {
	Body client.StoreCheckRequest
}

func (s *Server) checkStore(ctx context.Context, in *checkStoreInput, count func(done, total int64)) (out client.StoreReport, err error) {
	st, err := s.storage()
	if err != nil {
		return out, err
	}
	r, err := st.StoreCheck(ctx, in.Body.ReadData, count)
	if err != nil {
		return out, err
	}
	out = client.StoreReport{Checkpoints: r.Checkpoints, Packs: r.Packs, Bytes: r.Bytes, Leftovers: r.Leftovers, LeftBytes: r.LeftBytes}
	out.Problems, err = s.veil(ctx).problems(r.Problems)
	return out, err
}

func (s *Server) repairStore(ctx context.Context, _ *none, count func(done, total int64)) (out client.StoreRepaired, err error) {
	st, err := s.storage()
	if err != nil {
		return out, err
	}
	r, err := st.StoreRepair(ctx, count)
	if err != nil {
		return out, err
	}
	v := s.veil(ctx)
	out.Done = each(r.Done, v.text)
	out.Remaining, err = v.problems(r.Remaining)
	return out, err
}

type collectStoreInput struct {
	Body client.StoreGCRequest
}

func (s *Server) collectStore(ctx context.Context, in *collectStoreInput, count func(done, total int64)) (client.StoreSwept, error) {
	st, err := s.storage()
	if err != nil {
		return client.StoreSwept{}, err
	}
	r, err := st.StoreGC(ctx, in.Body.DryRun, count)
	return client.StoreSwept{
		Packs: r.Packs, Bytes: r.Bytes, Checkpoints: r.Checkpoints, Expired: r.Expired, Unknown: r.Unknown, DryRun: in.Body.DryRun,
	}, err
}

// veil hides the checkpoints of other orgs in what is said about the store. A
// failure to tell whose one is hides it, and is in err.
type veil struct {
	ctx   context.Context
	s     *Server
	shown map[string]string // by id
	err   error
}

func (s *Server) veil(ctx context.Context) *veil {
	return &veil{ctx: ctx, s: s, shown: map[string]string{}}
}

// checkpointID finds checkpoints in a text.
var checkpointID = regexp.MustCompile(`\bcp-[0-9a-f]{8}\b`)

// text hides the foreign ids that a text names.
func (v *veil) text(text string) string { return checkpointID.ReplaceAllStringFunc(text, v.id) }

// id gives the id if it is the org's.
func (v *veil) id(id string) string {
	if id == "" {
		return ""
	}
	if shown, ok := v.shown[id]; ok {
		return shown
	}
	shown := client.AnotherOrg
	_, err := v.s.cfg.Checkpoints.Get(v.ctx, orgOf(v.ctx), id)
	switch {
	case err == nil:
		shown = id
	case !fault.Is(err, fault.NotFound):
		v.err = err
	}
	v.shown[id] = shown
	return shown
}

// problems makes the wire form.
func (v *veil) problems(in []checkpoint.StoreProblem) ([]client.StoreProblem, error) {
	out := each(in, func(p checkpoint.StoreProblem) client.StoreProblem {
		return client.StoreProblem{
			Checkpoint: v.id(p.Checkpoint), Object: p.Object, Key: v.text(p.Key), What: v.text(p.What), Harmless: p.Harmless,
		}
	})
	return out, v.err
}
