// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// Where the objects and the packs of a bucket are.
const (
	Prefix    = "ckpt/"  // the objects of this package
	PackRoot  = "packs/" // packs/<id>/<name>
	idDigits  = 19       // decimal digits of the largest int64
	randChars = 16
	idLen     = idDigits + 1 + randChars
	maxKey    = 512
)

// number gives the number that an id begins with, which orders it.
func number(id string) (int64, bool) {
	if len(id) != idLen || id[idDigits] != '-' || !isHex(id[idDigits+1:]) {
		return 0, false
	}
	for _, c := range []byte(id[:idDigits]) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(id[:idDigits], 10, 64)
	return n, err == nil
}

// ValidID tells whether a string is an id as Begin makes them.
func ValidID(id string) bool {
	_, ok := number(id)
	return ok
}

// newID makes an id that sorts after all those pinned.
func (l *Log) newID(pins []string) (string, error) {
	n := l.cfg.Clock().UnixNano()
	for _, p := range pins {
		m, ok := number(p)
		if !ok {
			return "", fmt.Errorf("refs: pin %q is not an id", p)
		}
		if m == math.MaxInt64 {
			return "", fmt.Errorf("refs: no id sorts after %s", p)
		}
		if m >= n && !l.faults.unordered {
			n = m + 1
		}
	}
	r, err := l.random()
	return fmt.Sprintf("%0*d-%s", idDigits, max(n, 0), r), err
}

// random gives a string that nobody else has.
func (l *Log) random() (string, error) {
	var b [randChars / 2]byte
	if _, err := io.ReadFull(l.cfg.Random, b[:]); err != nil {
		return "", fmt.Errorf("refs: no random numbers: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// Owner gives the id of the only writer that may ever write a key. Packs are
// packs/<id>/<name> or, anywhere else but below ckpt/, <dir>/.../<id>-<name>;
// false is for all other keys, which a sweep never touches.
func Owner(key string) (id string, ok bool) {
	if !validKey(key) || strings.HasPrefix(key, Prefix) {
		return "", false
	}
	if rest, found := strings.CutPrefix(key, PackRoot); found {
		id, name, _ := strings.Cut(rest, "/")
		return id, ValidID(id) && name != "" && !strings.Contains(name, "/")
	}
	base := strings.LastIndexByte(key, '/') + 1
	name := key[base:]
	if base == 0 || len(name) < idLen+2 || name[idLen] != '-' {
		return "", false
	}
	return name[:idLen], ValidID(name[:idLen])
}

// validKey tells whether a bucket takes the key.
func validKey(key string) bool {
	if len(key) > maxKey {
		return false
	}
	for e := range strings.SplitSeq(key, "/") {
		if e == "" || e == "." || e == ".." {
			return false
		}
		for _, c := range []byte(e) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
				return false
			}
		}
	}
	return true
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == randChars
}

// below tells whether a key is packs/<id>/<name>.
func below(key, id string) bool { return strings.HasPrefix(key, PackRoot+id+"/") }
