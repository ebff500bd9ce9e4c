// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencomputer/oc/internal/fault"
)

// ID names a key: 1 to 16 lower-case letters, digits, '-', '_' and '.', the
// first a letter or digit. It is no secret. The empty ID means "not sealed".
type ID string

const (
	keySize   = 32
	maxID     = 16
	checkSize = 8

	maxKeys    = 1000
	maxKeyFile = 1 << 20
)

// What each derived value is for. The labels are part of the format.
const (
	labelObject = "opencomputer seal v1 object\x00"
	labelCheck  = "opencomputer seal v1 check\x00"
	labelDedup  = "opencomputer seal v1 dedup\x00"
)

// Keys is the content of a key file. A nil *Keys is that of no key file: it
// seals nothing, see Seal. It may be used by many goroutines.
type Keys struct {
	current ID
	keys    map[ID]key
	path    string // for hints; may be empty
}

type key struct {
	master [keySize]byte
	check  [checkSize]byte // tells two keys of one ID apart
}

// LoadKeys reads a key file. It must be a regular file that nobody but its
// owner can read or write.
func LoadKeys(path string) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the key file cannot be read").
			WithHint("give the path of a file that exists and that this user can read")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("seal: key file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "the key file %s is not a regular file", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Invalid, "the key file %s is open to other users (mode %04o)", path, st.Mode().Perm()).
			WithHint("chmod 600 %s; if others could have read it, put a new key in front", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("seal: key file: %w", err)
	}
	k, err := ParseKeys(text)
	if err != nil {
		f := *fault.As(err)
		f.Message = fmt.Sprintf("the key file %s is wrong: %s", path, f.Message)
		return nil, &f
	}
	k.path = path
	return k, nil
}

// ParseKeys reads the text of a key file. An error names the line and never
// what is on it.
func ParseKeys(text []byte) (*Keys, error) {
	if len(text) > maxKeyFile {
		return nil, fault.New(fault.Invalid, "it is larger than %d bytes", maxKeyFile)
	}
	k := &Keys{keys: map[ID]key{}}
	seen := map[key]bool{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		id, master, err := parseLine(line)
		if err != nil {
			return nil, fault.New(fault.Invalid, "line %d: %v", n, err).
				WithHint("a line is: <key id> <base64 of 32 bytes>")
		}
		if _, ok := k.keys[id]; ok {
			return nil, fault.New(fault.Invalid, "line %d: the key id %s is there twice", n, id).
				WithHint("a new key needs a new id, or what the old one sealed cannot be opened")
		}
		made := key{master: master, check: [checkSize]byte(derive(master[:], labelCheck, checkSize))}
		if seen[made] {
			return nil, fault.New(fault.Invalid, "line %d: the key of %s is there under another id", n, id)
		}
		if len(k.keys) == maxKeys {
			return nil, fault.New(fault.Invalid, "line %d: more than %d keys", n, maxKeys)
		}
		seen[made] = true
		k.keys[id] = made
		if k.current == "" {
			k.current = id
		}
	}
	if k.current == "" {
		return nil, fault.New(fault.Invalid, "there is no key in it").
			WithHint("a line is: <key id> <base64 of 32 bytes>")
	}
	return k, nil
}

// parseLine takes a line with a key apart.
func parseLine(line string) (ID, [keySize]byte, error) {
	var master [keySize]byte
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return "", master, fmt.Errorf("%d fields instead of 2", len(fields))
	}
	if !validID(fields[0]) {
		return "", master, fmt.Errorf("a key id is 1 to %d of a-z, 0-9, '-', '_', '.'", maxID)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil || len(raw) != keySize {
		return "", master, fmt.Errorf("the key is not the base64 of %d bytes", keySize)
	}
	copy(master[:], raw)
	if master == [keySize]byte{} {
		return "", master, fmt.Errorf("the key is all zeros")
	}
	return ID(fields[0]), master, nil
}

func validID(s string) bool {
	return s != "" && len(s) <= maxID &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && !strings.ContainsRune("-_.", rune(s[0]))
}

// Generate makes a line for a key file with a new random key, and an ID drawn
// at random too. To rotate, put it in front of the lines that are there.
func Generate() string {
	var id [6]byte
	var master [keySize]byte
	_, _ = rand.Read(id[:]) // never fails, by its contract
	_, _ = rand.Read(master[:])
	return fmt.Sprintf("k%x %s\n", id, base64.StdEncoding.EncodeToString(master[:]))
}

// Current is the ID of the key that Seal uses; for nil Keys it is empty.
func (k *Keys) Current() ID {
	if k == nil {
		return ""
	}
	return k.current
}

// Check tells whether what the key sealed can be opened: the error is a Fault
// (Invalid) that names the key. The empty ID, for "not sealed", is always right.
func (k *Keys) Check(id ID) error {
	if id == "" {
		return nil
	}
	_, err := k.find(id)
	return err
}

// find gives the key of an ID.
func (k *Keys) find(id ID) (key, error) {
	if k == nil {
		return key{}, fault.New(fault.Invalid, "this is encrypted with the key %s, and no key file is given", id).
			WithHint("give the key file that has a line for %s", id)
	}
	found, ok := k.keys[id]
	if !ok {
		return key{}, fault.New(fault.Invalid, "this is encrypted with the key %s, which %s does not have", id, k.file()).
			WithHint("add the line for %s, below the first, to %s", id, k.file())
	}
	return found, nil
}

// file names the key file in messages.
func (k *Keys) file() string {
	if k.path == "" {
		return "the key file"
	}
	return "the key file " + k.path
}

// DedupKey is the key for the keyed hashes by which equal pages of an org are
// found, derived from the current key. Pages that are equal have different
// hashes under different keys and in different orgs, so nothing is shared
// between them and the hashes tell nothing about the pages. For nil Keys it
// depends on the org alone and is no secret.
func (k *Keys) DedupKey(org string) [32]byte {
	dk, _ := k.DedupKeyOf(k.Current(), org) // the current key is there
	return dk
}

// DedupKeyOf is DedupKey as it was when id was current; id is "" for nil Keys.
// It fails like Check.
func (k *Keys) DedupKeyOf(id ID, org string) ([32]byte, error) {
	master := make([]byte, keySize) // for what is not sealed
	if id != "" {
		found, err := k.find(id)
		if err != nil {
			return [32]byte{}, err
		}
		master = found.master[:]
	}
	return [32]byte(derive(master, labelDedup+org, 32)), nil
}

// derive is HKDF-SHA256 without a salt: the masters are uniform already.
func derive(master []byte, info string, size int) []byte {
	out, err := hkdf.Key(sha256.New, master, nil, info, size)
	if err != nil {
		panic("seal: " + err.Error()) // only for sizes that nobody asks for
	}
	return out
}
