// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

// newStoreKey makes a line for a key file of the store: an id and a key, both
// drawn at random.
func newStoreKey() string {
	var id [4]byte
	var key [32]byte
	_, _ = rand.Read(id[:]) // never fails, by its contract
	_, _ = rand.Read(key[:])
	return fmt.Sprintf("%x %s\n", id, base64.StdEncoding.EncodeToString(key[:]))
}
