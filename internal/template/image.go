// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencomputer/oc/internal/fault"
)

// Image is an EROFS file that sandboxes start from.
type Image struct {
	Hash      string `json:"hash"`      // SHA-256 of the file
	TreeHash  string `json:"treeHash"`  // of the tree it was made from
	AgentHash string `json:"agentHash"` // SHA-256 of the agent in it
	SizeBytes int64  `json:"sizeBytes"` // of the file
	Path      string `json:"-"`         // where it is on this node
}

// imageFormat names how images are made from a tree and an agent. Another way
// gets another name, so that no record of the old way answers for it.
const imageFormat = "1"

// imageUUID is the same in all images, because it is part of their bytes.
const imageUUID = "6f632d69-6d61-4765-8000-000000000001"

// Image gives the image of a tree with an agent, and makes it if this node does
// not have it. Callers that want the same image at once wait for one maker.
func (b *Builder) Image(ctx context.Context, tree Tree, agent []byte) (Image, error) {
	if err := checkHash(tree.Hash); err != nil {
		return Image{}, err
	}
	sum := sha256.Sum256(agent)
	want := Image{TreeHash: tree.Hash, AgentHash: hex.EncodeToString(sum[:])}
	leave, err := b.flight.enter(ctx, want.TreeHash+want.AgentHash)
	if err != nil {
		return Image{}, err
	}
	defer leave()
	if img, ok := b.recorded(want); ok {
		return img, nil
	}
	img, err := b.makeImage(ctx, want, agent)
	if err != nil {
		return Image{}, fmt.Errorf("make the image of %s: %w", tree.Hash, noSpace(err))
	}
	return img, nil
}

// FindImage gives an image of this node by its hash alone. Only Hash, SizeBytes
// and Path are set. The fault is of kind NotFound if it is not there.
func (b *Builder) FindImage(hash string) (Image, error) {
	if err := checkHash(hash); err != nil {
		return Image{}, err
	}
	path := b.imagePath(hash)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fault.New(fault.NotFound, "image %s is not on this node", hash)
	}
	if err != nil {
		return Image{}, err
	}
	return Image{Hash: hash, SizeBytes: st.Size(), Path: path}, nil
}

// Images gives the hashes of all images on this node.
func (b *Builder) Images() ([]string, error) {
	return namesIn(filepath.Join(b.dir, "images"), ".erofs")
}

// AddImage takes in an image that another node has made, such as one that a
// checkpoint needs. What r gives must have the hash; then it is kept. Bytes
// that do not, or more than limit, are refused with a fault of kind Invalid.
func (b *Builder) AddImage(ctx context.Context, r io.Reader, hash string, limit int64) (Image, error) {
	if err := checkHash(hash); err != nil {
		return Image{}, err
	}
	s, err := b.stage()
	if err != nil {
		return Image{}, err
	}
	defer s.close()
	f, err := os.Create(s.path("image"))
	if err != nil {
		return Image{}, noSpace(err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(&ctxReader{ctx, r}, limit+1))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Image{}, fmt.Errorf("receive image %s: %w", hash, noSpace(err))
	}
	if n > limit || hex.EncodeToString(sum.Sum(nil)) != hash {
		return Image{}, fault.New(fault.Invalid, "the bytes received are not image %s", hash)
	}
	if err := b.keepImage(s.path("image"), hash); err != nil {
		return Image{}, err
	}
	return b.FindImage(hash)
}

// VerifyImage reads an image and compares it with its hash. Damage is a fault
// of kind Internal.
func (b *Builder) VerifyImage(ctx context.Context, hash string) error {
	img, err := b.FindImage(hash)
	if err != nil {
		return err
	}
	got, _, err := hashFile(ctx, img.Path)
	if err != nil {
		return err
	}
	if got != hash {
		return fault.New(fault.Internal, "image %s is damaged on this node", hash)
	}
	return nil
}

// RemoveImage removes an image and the records of how it was made. One that is
// not there is no error.
func (b *Builder) RemoveImage(hash string) error {
	if err := checkHash(hash); err != nil {
		return err
	}
	records, err := namesIn(filepath.Join(b.dir, "images"), ".json")
	if err != nil {
		return err
	}
	// The records first: one without its image is only made again, but must not
	// be what is left to find.
	for _, name := range records {
		path := filepath.Join(b.dir, "images", name+".json")
		var img Image
		if err := readJSON(path, &img); err != nil || img.Hash != hash {
			continue
		}
		if err := b.disk.Remove(path); err != nil {
			return err
		}
	}
	return b.disk.Remove(b.imagePath(hash))
}

func (b *Builder) imagePath(hash string) string {
	return filepath.Join(b.dir, "images", hash+".erofs")
}

// recordPath is where it is noted which image a tree and an agent gave.
func (b *Builder) recordPath(img Image) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{imageFormat, img.TreeHash, img.AgentHash}, " ")))
	return filepath.Join(b.dir, "images", hex.EncodeToString(sum[:])+".json")
}

// recorded finds an image that was made before. One that is missing or has
// another size does not count and is made again.
func (b *Builder) recorded(want Image) (Image, bool) {
	var img Image
	err := readJSON(b.recordPath(want), &img)
	if err != nil || img.TreeHash != want.TreeHash || img.AgentHash != want.AgentHash || checkHash(img.Hash) != nil {
		return Image{}, false
	}
	img.Path = b.imagePath(img.Hash)
	st, err := os.Stat(img.Path)
	return img, err == nil && st.Size() == img.SizeBytes
}

// makeImage makes an image file and notes what it was made from.
func (b *Builder) makeImage(ctx context.Context, img Image, agent []byte) (Image, error) {
	tree, err := b.Tree(img.TreeHash)
	if err != nil {
		return Image{}, err
	}
	s, err := b.stage()
	if err != nil {
		return Image{}, err
	}
	defer s.close()
	if err := linkTree(ctx, b.TreePath(tree), s.path("root")); err != nil {
		return Image{}, err
	}
	if err := addAgent(s.path("root"), agent); err != nil {
		return Image{}, err
	}
	if err := mkfs(ctx, s.path("image"), s.path("root")); err != nil {
		return Image{}, err
	}
	if img.Hash, img.SizeBytes, err = hashFile(ctx, s.path("image")); err != nil {
		return Image{}, err
	}
	if err := b.keepImage(s.path("image"), img.Hash); err != nil {
		return Image{}, err
	}
	record, err := json.Marshal(img)
	if err != nil {
		return Image{}, err
	}
	if err := b.disk.WriteFile(b.recordPath(img), record, 0o600); err != nil {
		return Image{}, err
	}
	img.Path = b.imagePath(img.Hash)
	b.log.Info("image made", "image", img.Hash, "tree", img.TreeHash, "agent", img.AgentHash, "bytes", img.SizeBytes)
	return img, nil
}

// keepImage gives a finished file its name. If there is one of that name, it
// has the same bytes, and this one takes its place.
func (b *Builder) keepImage(file, hash string) error {
	if err := os.Chmod(file, 0o444); err != nil {
		return err
	}
	return b.disk.Rename(file, b.imagePath(hash))
}

// mkfs writes a directory into an EROFS file that depends on nothing else.
func mkfs(ctx context.Context, file, dir string) error {
	t := tool{name: "mkfs.erofs", pkg: "erofs-utils", args: []string{
		"--quiet",
		"-x-1",                     // no extended attributes: the engine refuses inodes that have some
		"-Enoinline_data",          // file content on page boundaries, to be mapped and shared
		"-T" + strconv.Itoa(stamp), // of the file system itself
		"--preserve-mtime",         // of files: compiled Python, make and others compare them
		"-U" + imageUUID,
		file, dir,
	}}
	return t.run(ctx, nil)
}

// hashFile gives a file's SHA-256 and size.
func hashFile(ctx context.Context, path string) (hash string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := sha256.New()
	if size, err = io.Copy(sum, &ctxReader{ctx, f}); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(sum.Sum(nil)), size, nil
}

// ctxReader is a reader that ends with a context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
