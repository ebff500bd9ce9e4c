// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// The parts of the second reader (reader_test.go) that do not know what objects
// mean.

// file reads a file that is kept in parts.
func (r *secondReader) file(f *fileRead, sum string) (out []byte, err error) {
	if f == nil {
		return nil, nil
	}
	for _, o := range f.Parts {
		b, err := r.object(o)
		if err != nil {
			return nil, err
		}
		if b, err = unzstd(b); err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	if got := sha256.Sum256(out); hex.EncodeToString(got[:]) != sum || int64(len(out)) != f.Size {
		return nil, errors.New("a kept file is another")
	}
	return out, nil
}

// object reads an object that the manifest names.
func (r *secondReader) object(o objectRead) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, o.Key))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != o.Size || blake3Hex(b) != o.Blake3 {
		return nil, fmt.Errorf("%s is another", o.Key)
	}
	return r.unseal(b, o.Key, 0)
}

// keyID is the id of the key that sealed something.
func keyID(sealed []byte) string { return string(bytes.TrimRight(sealed[4:20], "\x00")) }

// unseal gives what was sealed as part of an object.
func (r *secondReader) unseal(b []byte, name string, number uint64) ([]byte, error) {
	if r.keys == nil {
		return b, nil
	}
	if len(b) < 60 || string(b[:4]) != "ocs1" || binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], crc32.MakeTable(crc32.Castagnoli)) {
		return nil, fmt.Errorf("%s is not sealed", name)
	}
	master := r.keys[keyID(b)]
	if master == nil {
		return nil, fmt.Errorf("%s is sealed with the key %s", name, keyID(b))
	}
	check, err := hkdf.Key(sha256.New, master, nil, "opencomputer seal v1 check\x00", 8)
	if err != nil || !bytes.Equal(check, b[20:28]) {
		return nil, fmt.Errorf("%s is sealed with another key %s (%w)", name, keyID(b), err)
	}
	key, err := hkdf.Key(sha256.New, master, nil, "opencomputer seal v1 object\x00"+name, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, b[32:44], b[44:], strconv.AppendUint(bytes.Clone(b[:32]), number, 10))
}

func blake3Hex(parts ...[]byte) string {
	sum := blake3.Sum256(bytes.Join(parts, nil))
	return hex.EncodeToString(sum[:])
}

func unzstd(b []byte) ([]byte, error) {
	d, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(b, nil)
}

// parser takes bytes apart; what is behind the end is zeros and an error.
type parser struct {
	b   []byte
	err error
}

func (p *parser) bytes(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.b, p.err = nil, errors.New("it is cut off")
		return make([]byte, min(n, 1<<20))
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) varint() uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 {
		p.b, p.err = nil, errors.New("it is cut off")
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *parser) svarint() int64 {
	v := p.varint()
	return int64(v>>1) ^ -int64(v&1)
}
