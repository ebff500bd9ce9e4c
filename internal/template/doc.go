// SPDX-License-Identifier: Apache-2.0

// Package template makes root file systems and the images that sandboxes start
// from.
//
// A tree is an unpacked root file system, <data>/templates/<hash>/tree, named
// by the hash of its content. It comes from Debian packages (BuildDebian), from
// packages of this host (BuildHost), or from an archive (Import). Every tree
// has what a sandbox needs: a user "sandbox", mount points, and empty identity
// files, see complete.
//
// An image is an EROFS file, <data>/images/<hash>.erofs, named by the SHA-256 of
// its bytes: a tree with the agent at /.oc/agent and an empty directory /.oc/ro.
// The name /.oc is reserved: what an imported tree has there is left out.
// Images carry no extended attributes, because the engine refuses them.
//
// Invariants:
//   - Trees and images never change once they have their name, and appear under
//     it complete and durable.
//   - The same tree and agent give the same image, byte for byte.
//   - What fails, or is cancelled, or dies with the process, leaves only a
//     directory in <data>/tmp that the next New removes; no mounts, no
//     processes.
//
// Making templates needs root, because files have owners, and the tools
// mkfs.erofs and, for BuildDebian, mmdebstrap. Running sandboxes needs neither.
//
// The package knows nothing of metadata rows, names of templates, sandboxes,
// checkpoints or HTTP. Whether a tree or an image is still used is for its
// caller to know.
package template
