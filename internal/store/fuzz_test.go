// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// soundManifest is one with everything in it.
func soundManifest() *Manifest {
	o := Object{Key: "packs/a/b", Size: 10, Blake3: strings.Repeat("0", 64)}
	return &Manifest{
		Format: FormatName, Version: FormatVersion, Checkpoint: "cp-1", Org: "org-1", Sandbox: "sb-1", Name: "a", Parent: "cp-0", CreatedAt: time.Unix(1, 2).UTC(),
		Requirements: engine.Requirements{Engine: "gvisor 1", Arch: "amd64", CPUFeatures: []string{"avx"}}, Shape: engine.Shape{CPUs: 1, MemoryBytes: 1 << 30},
		SizeBytes: 100, Table: o, Hashes: o, Engine: &Blob{Size: 5, Parts: []Object{o}}, Image: &Blob{Parts: []Object{}}, Hot: "packs/a/c",
	}
}

func TestManifestRefuses(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*Manifest){
		"":                          func(*Manifest) {},
		"another format":            func(m *Manifest) { m.Format = "tar" },
		"an earlier version":        func(m *Manifest) { m.Version = 1 },
		"no checkpoint":             func(m *Manifest) { m.Checkpoint = "" },
		"a negative size":           func(m *Manifest) { m.SizeBytes = -1 },
		"no table":                  func(m *Manifest) { m.Table = Object{} },
		"hashes of a negative size": func(m *Manifest) { m.Hashes.Size = -1 },
		"a table too large":         func(m *Manifest) { m.Table.Size = bucket.MaxObject + 1 },
		"a hash cut off":            func(m *Manifest) { m.Table.Blake3 = "00" },
		"a part without a key":      func(m *Manifest) { m.Engine.Parts[0].Key = "" },
		"a part too large":          func(m *Manifest) { m.Engine.Parts[0].Size = 1 << 40 },
		"a file of a negative size": func(m *Manifest) { m.Image.Size = -1 },
	} {
		m := soundManifest()
		spoil(m)
		raw, err := encodeManifest(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeManifest("cp-1", raw); (name == "") != (err == nil) || err != nil && !fault.Is(err, fault.Damaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeManifest finds no bytes that break the decoder, and none that it
// accepts and that are lost when the manifest is written again. The hash is put
// on, or nearly nothing would get past it.
func FuzzDecodeManifest(f *testing.F) {
	raw, err := encodeManifest(soundManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, false)
	f.Add(raw[:bytes.LastIndex(raw, []byte(sealLine))], true)
	f.Add([]byte(`{"format":"opencomputer-checkpoint","version":3,"checkpoint":"cp-1"}`), true)
	f.Add([]byte(`{"format":"opencomputer-checkpoint","version":2,"engine":{"parts":[{}]}}`), true)
	f.Add([]byte("null"), true)
	f.Add([]byte(sealLine), false)
	f.Fuzz(func(t *testing.T, in []byte, seal bool) {
		if seal {
			in = append(bytes.Clone(in), sealLine+hexSum(in)+"\n"...)
		}
		m, err := decodeManifest("cp-1", in)
		if err != nil {
			if !fault.Is(err, fault.Damaged) && !fault.Is(err, fault.Invalid) {
				t.Errorf("%v", err)
			}
			return
		}
		once, err := encodeManifest(m)
		if err != nil {
			t.Fatalf("accepted what cannot be written: %v", err)
		}
		again, err := decodeManifest("cp-1", once)
		if err != nil {
			t.Fatalf("what was accepted is not, once written: %v", err)
		}
		if twice, err := encodeManifest(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s became %s, %v", once, twice, err)
		}
	})
}
