// SPDX-License-Identifier: Apache-2.0

// Package archive turns local files into a tar stream and a tar stream into
// local files, for copying to and from a sandbox.
//
// Permission bits, modification times and symbolic links are kept; owners,
// set-id bits, devices, pipes and sockets are not.
//
// What Unpack reads is hostile: it comes out of a sandbox. It writes nothing
// outside the directory it is given, follows no symbolic link on its way, plants
// none that points out of the tree, replaces files by renaming (so that nothing
// is written through what was there), and stops at a bound in entries and bytes.
//
// The package knows nothing of the API or of commands.
package archive

import "fmt"

// Stats says what was copied.
type Stats struct {
	Files int   // regular files
	Bytes int64 // their content
}

// The bounds of one archive.
const (
	maxEntries = 5_000_000
	maxBytes   = 1 << 40
	maxName    = 4096 // bytes
	maxDepth   = 256  // elements of a name
)

// Notices tells the caller what happens meanwhile. Fields may be nil.
type Notices struct {
	Skipped  func(name, reason string) // an entry was left out
	Progress func(Stats)               // after each entry
}

// skip reports an entry that was left out.
func (n Notices) skip(name, format string, args ...any) {
	if n.Skipped != nil {
		n.Skipped(name, fmt.Sprintf(format, args...))
	}
}

// progress reports how far it is.
func (n Notices) progress(s Stats) {
	if n.Progress != nil {
		n.Progress(s)
	}
}
