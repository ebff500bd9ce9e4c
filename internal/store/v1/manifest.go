// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	"github.com/opencomputer/oc/internal/engine"
	"github.com/opencomputer/oc/internal/fault"
)

// FormatName and FormatVersion stand in each manifest. A reader refuses other
// names and higher versions.
const (
	FormatName    = "opencomputer-checkpoint"
	FormatVersion = 1
)

// maxManifest bounds a manifest file; ours are about 1 KiB.
const maxManifest = 1 << 20

// Manifest describes a stored checkpoint: what it is, what it needs to run
// again, and the sizes and hashes by which its files are verified.
type Manifest struct {
	Format       string              `json:"format"`
	Version      int                 `json:"version"`
	Checkpoint   string              `json:"checkpoint"`
	Sandbox      string              `json:"sandbox"`
	Parent       string              `json:"parent,omitempty"`
	CreatedAt    time.Time           `json:"createdAt"`
	Requirements engine.Requirements `json:"requirements"`
	Build        string              `json:"build"`     // sha256 of the oc build whose engine wrote it
	ImageHash    string              `json:"imageHash"` // sha256 of the EROFS image it runs on
	TreeHash     string              `json:"treeHash"`  // content hash of the template's tree
	Agent        int                 `json:"agent"`     // protocol version of the agent frozen in it
	Shape        engine.Shape        `json:"shape"`
	Files        []FileInfo          `json:"files"`
	BlockSize    int                 `json:"blockSize"`
	Sums         Table               `json:"sums"`   // block hashes of all files
	Ranges       Table               `json:"ranges"` // page identities of the pages file
}

// FileInfo is one file of the capture.
type FileInfo struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Table is a file whose whole content is verified by one hash.
type Table struct {
	Size   int64  `json:"size"`
	Blake3 string `json:"blake3"`
}

// LogicalSize is the size of the state in bytes.
func (m *Manifest) LogicalSize() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// StoredSize is what the checkpoint takes in the store, in bytes.
func (m *Manifest) StoredSize() int64 { return m.LogicalSize() + m.Sums.Size + m.Ranges.Size }

// Damaged says that a checkpoint's stored bytes are not what was written.
func Damaged(checkpoint, format string, args ...any) *fault.Fault {
	return fault.New(fault.Damaged, "checkpoint %s is damaged: %s", checkpoint, fmt.Sprintf(format, args...)).
		WithHint("delete it and use another checkpoint; the disk under the data directory may be failing")
}

// sealLine introduces the last line of a manifest: the BLAKE3 of all before it.
const sealLine = "\nblake3:"

// encodeManifest gives the JSON followed by its seal.
func encodeManifest(m *Manifest) ([]byte, error) {
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("store: encoding the manifest: %w", err)
	}
	sum := blake3.Sum256(body)
	return append(body, sealLine+hex.EncodeToString(sum[:])+"\n"...), nil
}

// decodeManifest checks the seal, the format and version, whose checkpoint it
// is, and the plausibility of names and sizes.
func decodeManifest(id string, raw []byte) (*Manifest, error) {
	i := bytes.LastIndex(raw, []byte(sealLine))
	if i < 0 {
		return nil, Damaged(id, "its manifest has no seal")
	}
	body := raw[:i]
	sum := blake3.Sum256(body)
	if string(raw[i:]) != sealLine+hex.EncodeToString(sum[:])+"\n" {
		return nil, Damaged(id, "its manifest does not match its hash")
	}
	// Before the rest, whose meaning depends on it.
	var head struct {
		Format     string `json:"format"`
		Version    int    `json:"version"`
		Checkpoint string `json:"checkpoint"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return nil, Damaged(id, "its manifest is not valid JSON")
	}
	if head.Format != FormatName || head.Version < 1 {
		return nil, Damaged(id, "its manifest is of format %q version %d", head.Format, head.Version)
	}
	if head.Version > FormatVersion {
		return nil, fault.New(fault.Invalid, "checkpoint %s has format version %d; this release reads up to %d", id, head.Version, FormatVersion).
			WithHint("upgrade oc")
	}
	if head.Checkpoint != id {
		return nil, Damaged(id, "its manifest belongs to %q", head.Checkpoint)
	}
	m := new(Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, Damaged(id, "its manifest has a field of the wrong type")
	}
	return m, m.plausible(id)
}

// maxFile bounds the size that a manifest may claim for a file.
const maxFile = 1 << 50

// plausible checks that the files are those of the format, and that the tables
// have the sizes that follow from theirs.
func (m *Manifest) plausible(id string) error {
	names := []string{FileState, FileMeta, FilePages}
	if m.BlockSize != blockSize || len(m.Files) != len(names) {
		return Damaged(id, "its manifest names %d files in blocks of %d bytes", len(m.Files), m.BlockSize)
	}
	sums := int64(len(sumsMagic))
	for i, f := range m.Files {
		if f.Name != names[i] || f.Size < 0 || f.Size > maxFile {
			return Damaged(id, "its manifest names a file %q of %d bytes", f.Name, f.Size)
		}
		sums += blocks(f.Size) * sumBytes
	}
	if m.Sums.Size != sums {
		return Damaged(id, "its table of block hashes is said to have %d bytes instead of %d", m.Sums.Size, sums)
	}
	if m.Ranges.Size < 0 || m.Ranges.Size > maxRangesTable {
		return Damaged(id, "its table of page identities is said to have %d bytes", m.Ranges.Size)
	}
	return nil
}

// maxRangesTable allows for every other page of 256 GiB to be a range.
const maxRangesTable = 1 << 30
