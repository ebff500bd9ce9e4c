// SPDX-License-Identifier: Apache-2.0

// Package seal encrypts what goes into a store, so that who runs the store's
// disk or bucket can neither read nor change it unnoticed. It is optional: a
// nil *Keys passes bytes through.
//
// # Keys
//
// A key file is text: one key a line, "<key id> <base64 of 32 bytes>"; empty
// lines and those that begin with '#' say nothing. The first key seals, all of
// them open. So a key is replaced by putting a new line in front (Generate) and
// leaving the others until nothing sealed with them is left.
//
// # Layout of a sealed blob
//
//	offset  size  what
//	     0     4  "ocs1"
//	     4    16  key ID, filled up with zeros
//	    20     8  key check: HKDF of the master key; the same for all blobs of it
//	    28     4  CRC-32C of the 28 bytes before, little endian
//	    32    12  nonce, random
//	    44     n  ciphertext, as long as the plain text
//	  44+n    16  tag
//
// The cipher is AES-256-GCM. Its key is HKDF-SHA256 (master key, no salt,
// "opencomputer seal v1 object" NUL object); its associated data are the first
// 32 bytes of the blob followed by the caller's. So a blob opens only as part
// of the object it was made for, in the place that the caller's data name, and
// with the key that its header names.
//
// # Bounds
//
// Each object has a key of its own and each blob a random nonce: 2^32 blobs of
// one object (per master key) keep the risk that a nonce repeats below 2^-32,
// and a blob may have 64 GiB. How many objects there are does not matter: two
// of 2^64 objects get the same 256-bit key with a probability below 2^-128.
// Objects of one name, as when one is written again, share the first bound.
//
// # What the caller must do
//
// Without keys nothing marks a blob as clear, and clear bytes may look like
// anything, a sealed blob included. So who writes notes Current with the
// object, in a place that he reads first; "" stands for clear, and what is
// clear is opened with nil Keys. Who has keys and must not be fooled by
// somebody who swaps sealed objects for clear ones refuses "" there.
//
// Lengths are not hidden, nor is what is equal: that is the caller's to avoid.
// The package knows nothing of pages, packs and manifests.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/opencomputer/oc/internal/fault"
)

// Overhead is what sealing adds to the length of a blob, in bytes. Nil Keys add
// nothing.
const Overhead = headerSize + nonceSize + tagSize

const (
	magic      = "ocs1"
	checkAt    = len(magic) + maxID
	crcAt      = checkAt + checkSize
	headerSize = crcAt + 4
	nonceSize  = 12
	tagSize    = 16
)

// ErrDamaged says that a blob is not what was sealed for this object and these
// associated data: it was changed, cut, or belongs elsewhere.
var ErrDamaged = errors.New("seal: damaged, or not from this place")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal appends to dst the sealed form of plain, which must not overlap the rest
// of dst. object names the object that the blob is part of; ad, which is not
// stored, names its place there, and Open needs the same. Nil Keys append plain
// as it is.
func (k *Keys) Seal(dst, plain []byte, object string, ad []byte) []byte {
	if k == nil {
		return append(dst, plain...)
	}
	with := k.keys[k.current]
	at := len(dst)
	dst = append(dst, header(k.current, with)...)
	return with.aead(object).Seal(dst, nil, plain, bindTo(dst[at:], ad))
}

// Open appends to dst what was sealed, which must not overlap the rest of dst.
// A blob that was changed, or sealed for another object or other associated
// data, is ErrDamaged; a key that is missing, or is another than the one of
// that ID which sealed the blob, is a Fault (Invalid). Nil Keys append sealed as
// it is.
func (k *Keys) Open(dst, sealed []byte, object string, ad []byte) ([]byte, error) {
	if k == nil {
		return append(dst, sealed...), nil
	}
	id, check, err := parseHeader(sealed)
	if err != nil {
		return nil, err
	}
	with, err := k.find(id)
	if err != nil {
		return nil, err
	}
	if with.check != check {
		return nil, fault.New(fault.Invalid, "this is encrypted with another key than the one that %s has for %s", k.file(), id).
			WithHint("find the key that was %s when this was written, and give one of the two another id", id)
	}
	plain, err := with.aead(object).Open(dst, nil, sealed[headerSize:], bindTo(sealed[:headerSize], ad))
	if err != nil {
		return nil, ErrDamaged
	}
	return plain, nil
}

// KeyOf gives the ID of the key that sealed a blob. For what is no sealed blob
// it is ErrDamaged. The answer is not authenticated.
func KeyOf(sealed []byte) (ID, error) {
	id, _, err := parseHeader(sealed)
	return id, err
}

// header makes the clear beginning of a blob.
func header(id ID, with key) []byte {
	h := make([]byte, headerSize)
	copy(h, magic)
	copy(h[len(magic):checkAt], id)
	copy(h[checkAt:], with.check[:])
	binary.LittleEndian.PutUint32(h[crcAt:], crc32.Checksum(h[:crcAt], castagnoli))
	return h
}

// parseHeader reads the clear beginning of a blob. The checksum keeps a flipped
// bit there from looking like a missing key.
func parseHeader(sealed []byte) (ID, [checkSize]byte, error) {
	var check [checkSize]byte
	if len(sealed) < Overhead || string(sealed[:len(magic)]) != magic ||
		crc32.Checksum(sealed[:crcAt], castagnoli) != binary.LittleEndian.Uint32(sealed[crcAt:]) {
		return "", check, ErrDamaged
	}
	id, rest, _ := bytes.Cut(sealed[len(magic):checkAt], []byte{0})
	if !validID(string(id)) || len(bytes.Trim(rest, "\x00")) > 0 {
		return "", check, ErrDamaged
	}
	copy(check[:], sealed[checkAt:])
	return ID(id), check, nil
}

// bindTo gives the associated data of the cipher. The header has one length, so
// that the two parts cannot be mistaken for each other.
func bindTo(header, ad []byte) []byte {
	return append(append(make([]byte, 0, headerSize+len(ad)), header...), ad...)
}

// aead makes the cipher of an object. It draws a nonce for each blob and puts
// it in front.
func (m key) aead(object string) cipher.AEAD {
	block, err := aes.NewCipher(derive(m.master[:], labelObject+object, keySize))
	if err != nil {
		panic(fmt.Sprintf("seal: %v", err)) // only for a wrong key size
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(fmt.Sprintf("seal: %v", err)) // only for another cipher than AES
	}
	return gcm
}
