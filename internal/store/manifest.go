// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// FormatName and FormatVersion stand in each manifest. A reader refuses other
// names and higher versions.
const (
	FormatName    = "opencomputer-checkpoint"
	FormatVersion = 2
)

// Manifest describes a stored checkpoint: what it is, what it needs to run
// again, and where the table of its pages is.
type Manifest struct {
	Format       string              `json:"format"`
	Version      int                 `json:"version"`
	Checkpoint   string              `json:"checkpoint"`
	Org          string              `json:"org"`
	Sandbox      string              `json:"sandbox"`
	Name         string              `json:"name,omitempty"`
	Parent       string              `json:"parent,omitempty"`
	CreatedAt    time.Time           `json:"createdAt"`
	Requirements engine.Requirements `json:"requirements"`
	Build        string              `json:"build"`     // sha256 of the oc build whose engine wrote it
	ImageHash    string              `json:"imageHash"` // sha256 of the EROFS image it runs on
	TreeHash     string              `json:"treeHash"`  // content hash of the template's tree
	Agent        int                 `json:"agent"`     // protocol version of the agent frozen in it
	Shape        engine.Shape        `json:"shape"`
	SizeBytes    int64               `json:"sizeBytes"`   // of the state
	AddedBytes   int64               `json:"addedBytes"`  // that were written for it: packs, table and hashes
	CopiedBytes  int64               `json:"copiedBytes"` // of pages that the capture held; the others were equal to the parent's
	Table        Object              `json:"table"`
	Hashes       Object              `json:"hashes"`
	Engine       *Blob               `json:"engine,omitempty"` // the build's binary
	Image        *Blob               `json:"image,omitempty"`  // the EROFS image
	Hot          string              `json:"hot,omitempty"`    // key under which the order of first reads may be kept
}

// Object names an object of the bucket and verifies it.
type Object struct {
	Key    string `json:"key"`
	Size   int64  `json:"size"`   // as stored
	Blake3 string `json:"blake3"` // of the bytes as stored, lower-case hex
}

// Blob is a file kept in parts, compressed and sealed one by one.
type Blob struct {
	Size  int64    `json:"size"` // of the file
	Parts []Object `json:"parts"`
}

// Damaged says that a checkpoint's stored bytes are not what was written.
func Damaged(checkpoint, format string, args ...any) *fault.Fault {
	return fault.New(fault.Damaged, "checkpoint %s is damaged: %s", checkpoint, fmt.Sprintf(format, args...)).
		WithHint("delete it and use another checkpoint; `oc store check` says what else is damaged")
}

// sealLine introduces the last line of a manifest: the BLAKE3 of all before it.
const sealLine = "\nblake3:"

// encodeManifest gives the JSON followed by its seal.
func encodeManifest(m *Manifest) ([]byte, error) {
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("store: encoding the manifest: %w", err)
	}
	return append(body, sealLine+hexSum(body)+"\n"...), nil
}

func hexSum(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// decodeManifest checks the seal, format and version, and the plausibility of
// names and sizes. name is what errors call the checkpoint until its own is
// known.
func decodeManifest(name string, raw []byte) (*Manifest, error) {
	i := bytes.LastIndex(raw, []byte(sealLine))
	if i < 0 {
		return nil, Damaged(name, "its manifest has no seal")
	}
	body := raw[:i]
	if string(raw[i:]) != sealLine+hexSum(body)+"\n" {
		return nil, Damaged(name, "its manifest does not match its hash")
	}
	// Before the rest, whose meaning depends on it.
	var head struct {
		Format     string `json:"format"`
		Version    int    `json:"version"`
		Checkpoint string `json:"checkpoint"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return nil, Damaged(name, "its manifest is not valid JSON")
	}
	if head.Checkpoint != "" {
		name = head.Checkpoint
	}
	if head.Format != FormatName || head.Version < FormatVersion {
		return nil, Damaged(name, "its manifest is of format %q version %d", head.Format, head.Version)
	}
	if head.Version > FormatVersion {
		return nil, newer(fault.New(fault.Invalid, "checkpoint %s has format version %d; this release reads up to %d", name, head.Version, FormatVersion))
	}
	m := new(Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, Damaged(name, "its manifest has a field of the wrong type")
	}
	return m, m.plausible()
}

// newer tells what to do about what this release does not know.
func newer(f *fault.Fault) *fault.Fault { return f.WithHint("upgrade oc") }

// plausible checks what other code allocates by.
func (m *Manifest) plausible() error {
	all := []Object{m.Table, m.Hashes}
	for _, b := range []*Blob{m.Engine, m.Image} {
		if b != nil {
			all = append(all, b.Parts...)
			if b.Size < 0 {
				return Damaged(m.Checkpoint, "its manifest names a file of %d bytes", b.Size)
			}
		}
	}
	for _, o := range all {
		if o.Key == "" || o.Size < 0 || o.Size > bucket.MaxObject || len(o.Blake3) != 64 {
			return Damaged(m.Checkpoint, "its manifest names an object %q of %d bytes", o.Key, o.Size)
		}
	}
	if m.Checkpoint == "" || m.SizeBytes < 0 {
		return Damaged(m.Checkpoint, "its manifest is not complete")
	}
	return nil
}

// objects are the keys that the manifest itself names.
func (m *Manifest) objects() []string {
	keys := []string{m.Table.Key, m.Hashes.Key}
	if m.Hot != "" {
		keys = append(keys, m.Hot)
	}
	for _, b := range []*Blob{m.Engine, m.Image} {
		if b != nil {
			for _, p := range b.Parts {
				keys = append(keys, p.Key)
			}
		}
	}
	return keys
}
