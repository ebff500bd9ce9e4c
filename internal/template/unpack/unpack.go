// SPDX-License-Identifier: Apache-2.0

// Package unpack writes tar archives, and the layers of container images, into
// a directory.
//
// The archives are hostile. No name, link, hard link or order of entries can
// reach what is outside the directory (package rootfs sees to that), device
// nodes are left out, and the number of entries, the bytes written and the
// number of names are bounded. What is kept: owners and modes with setuid, times
// of modification, hard links, named pipes, and the extended attributes user.*
// and security.capability.
//
// Invariants: a layer's whiteouts remove what lower layers wrote and nothing of
// the layer itself, in whatever order its entries come, as long as it names its
// places without going through links of lower layers, as makers of images do. After
// an error the directory holds some part of the archive and is good for nothing.
//
// Why not a library: the maintained ones were put under this package's tests,
// behind a filter of entries that keeps its limits, and none passed.
//   - containerd/v2/pkg/archive 2.4.2 and moby/go-archive 0.3.3: a whiteout
//     removes what its own layer wrote before it (TestLayers, "own file stays",
//     "opaque last"), and the entry of a hard link sets owner and mode of its
//     target (TestWhatIsKept), which loses its capabilities, too.
//   - umoci/oci/layer 0.6.0: the code here would be little more than half, but
//     whiteouts in plain tarballs are taken as such, an attribute that the file
//     system cannot hold ends the import, and a file that is in the way becomes
//     a directory (TestHostileArchives, "file for directory").
//   - go-containerregistry 0.22.1, mutate.Extract: it gives upper layers first,
//     so a hard link to a lower file comes before the file (TestLayers, "hard
//     link below"), drops links that lead out, and only makes another tarball.
//
// The first three also follow links on their own rather than let the kernel,
// and containerd and umoci then work with host paths. One entry through 240
// links in a directory 900 deep took each of them 7 to 10 seconds of processor
// time, which no context can end; the kernel refuses the 41st link. And
// containerd and umoci keep names as resolved: 20,000 names of a few bytes,
// below a link to a deep directory, took 80 MB of memory, so the five million
// entries allowed here would take 20 GB.
//
// The package knows nothing of compression, image manifests or templates.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/template/rootfs"
)

// Limits bounds what all archives written into one Target may bring in.
type Limits struct {
	Bytes   int64 // of file content
	Entries int64 // of archives, whether or not they end up in the tree
}

// The default limits are far above what a root file system needs and far below
// what harms a node. Names are held in memory while a layer is written, so what
// they may take together is bounded, too.
const (
	defaultBytes     = 64 << 30
	defaultEntries   = 5 << 20
	defaultNameBytes = 128 << 20
)

// Stats says what was not taken as it came.
type Stats struct {
	Devices int // device nodes left out
	Xattrs  int // extended attributes left out
}

// Target is a directory that archives are written into.
type Target struct {
	root  *rootfs.Root
	left  Limits
	names int64 // bytes of names that may still come
	stats Stats
	buf   []byte
}

// New gives a Target for an open root, which stays the caller's. Zero limits
// stand for 64 GiB and five million entries.
func New(root *rootfs.Root, limits Limits) *Target {
	if limits.Bytes == 0 {
		limits.Bytes = defaultBytes
	}
	if limits.Entries == 0 {
		limits.Entries = defaultEntries
	}
	return &Target{root: root, left: limits, names: defaultNameBytes, buf: make([]byte, 1<<18)}
}

// Stats gives what was left out until now.
func (t *Target) Stats() Stats { return t.stats }

// Tar writes an archive over what is there. Errors in the archive are faults of
// kind Invalid.
func (t *Target) Tar(ctx context.Context, r io.Reader) error {
	return t.apply(ctx, &pass{Target: t, dirTimes: map[string]time.Time{}}, r)
}

// Layer writes one layer of a container image over the lower ones: like Tar,
// with ".wh." names as whiteouts.
func (t *Target) Layer(ctx context.Context, r io.Reader) error {
	return t.apply(ctx, &pass{Target: t, dirTimes: map[string]time.Time{}, own: map[string]bool{}}, r)
}

// pass is the writing of one archive.
type pass struct {
	*Target
	dirTimes map[string]time.Time // set when all is written, because writing changes them
	own      map[string]bool      // names written by this layer; nil for a plain archive
}

func (t *Target) apply(ctx context.Context, p *pass, r io.Reader) error {
	tr := tar.NewReader(&source{ctx: ctx, r: r})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readError(err, "the archive is damaged")
		}
		t.left.Entries--
		t.names -= int64(len(h.Name))
		if t.left.Entries < 0 || t.names < 0 {
			return fault.New(fault.Invalid, "the archive has too many entries")
		}
		if err := p.entry(h, tr); err != nil {
			return err
		}
	}
	for name, mtime := range p.dirTimes {
		// A directory may have been replaced by a later entry.
		if err := t.root.Lchtimes(name, mtime); err != nil && !errors.Is(err, fs.ErrNotExist) && !notDir(err) {
			return err
		}
	}
	return nil
}

// entry writes one entry.
func (p *pass) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := safeName(h.Name)
	if err != nil {
		return err
	}
	if p.own != nil && strings.HasPrefix(path.Base(name), whiteout) {
		return p.whiteout(name)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		p.stats.Devices++
		return nil
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fault.New(fault.Invalid, "the archive's entry %q has an impossible owner", h.Name)
	}
	linked := false
	if h.Typeflag == tar.TypeLink {
		// A link onto itself says nothing; clearing its name would lose the file.
		target, err := safeName(h.Linkname)
		if err != nil {
			return err
		}
		h.Linkname, linked = target, target == name
	}
	if !linked {
		if err := p.clear(name, h.Typeflag == tar.TypeDir); err != nil {
			return hostile(err, h.Name)
		}
		if err := p.make(name, h, r); err != nil {
			return hostile(err, h.Name)
		}
	}
	if p.own != nil {
		p.mark(name)
	}
	if h.Typeflag == tar.TypeLink {
		return nil // its attributes are those of its target
	}
	return p.attributes(name, h)
}

// clear makes the name free, with its parents there; a directory may stay to
// become another.
func (p *pass) clear(name string, dir bool) error {
	if err := p.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	st, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if dir && st.Mode&typeMask == typeDir {
		return nil
	}
	return p.root.RemoveAll(name)
}

// make makes what the entry says under a free name.
func (p *pass) make(name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return p.file(name, h, r)
	case tar.TypeDir:
		if err := p.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeSymlink:
		return p.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return p.root.Link(h.Linkname, name)
	case tar.TypeFifo:
		return p.root.Mkfifo(name, 0o600)
	}
	return fault.New(fault.Invalid, "the archive's entry %q is of unknown type %q", h.Name, h.Typeflag)
}

// file writes a regular file.
func (p *pass) file(name string, h *tar.Header, r io.Reader) error {
	if h.Size > p.left.Bytes {
		return fault.New(fault.Invalid, "the archive holds more data than a template may (at entry %q)", h.Name)
	}
	p.left.Bytes -= h.Size
	f, err := p.root.Create(name, 0o600)
	if err != nil {
		return err
	}
	// Only the writing side may use the buffer: f's own ReadFrom would allocate.
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, &contentReader{r}, p.buf)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// attributes sets owner, mode, extended attributes and times of what was made.
func (p *pass) attributes(name string, h *tar.Header) error {
	// Before the mode, because a change of owner takes setuid away.
	if err := p.root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := p.root.Chmod(name, uint32(h.Mode&0o7777)); err != nil {
			return err
		}
		if err := p.xattrs(name, h); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		p.dirTimes[name] = h.ModTime
		return nil
	}
	return p.root.Lchtimes(name, h.ModTime)
}

// safeName gives the name of an entry inside the root. Absolute names are taken
// from the root on; names that climb are refused rather than bent.
func safeName(name string) (string, error) {
	if len(name) > 4096 || strings.ContainsRune(name, 0) {
		return "", fault.New(fault.Invalid, "the archive has an impossible name %.80q", name)
	}
	for el := range strings.SplitSeq(name, "/") {
		if el == ".." {
			return "", fault.New(fault.Invalid, "the archive's name %q leads out of the root", name)
		}
	}
	return rootfs.Clean(name), nil
}

// hostile makes a failure that only the archive's own content can cause a fault
// of it.
func hostile(err error, name string) error {
	var f *fault.Fault
	if errors.As(err, &f) {
		return err
	}
	if archiveCaused(err) {
		return fault.Wrap(fault.Invalid, err, "the archive's entry %q does not fit what is before it", name)
	}
	return fmt.Errorf("unpack %q: %w", name, err)
}
