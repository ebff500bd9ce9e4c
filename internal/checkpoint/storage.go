// SPDX-License-Identifier: Apache-2.0

package checkpoint

// StoreStats says how much the store holds.
type StoreStats struct {
	Where        string // a directory or s3://bucket/prefix, without credentials
	Checkpoints  int    // complete ones, of all orgs
	LogicalBytes int64  // sum of the sizes of their states
	StoredBytes  int64  // what the store takes for them
	CacheBytes   int64  // what the local cache takes now
	CacheLimit   int64  // what it may take; 0: there is none
	Sealed       bool   // new checkpoints are sealed with a key
}

// StoreReport is what a check of the store found.
type StoreReport struct {
	Checkpoints int // complete ones, sound or not
	Packs       int // objects that they need
	Bytes       int64
	Leftovers   int // objects that no checkpoint needs
	LeftBytes   int64
	Problems    []StoreProblem
}

// StoreProblem is something that is wrong in the store.
type StoreProblem struct {
	Checkpoint string // "" if it cannot be told
	Object     string // the checkpoint's object in the store; "" for none
	Key        string // what is wrong, as the store names it
	What       string // for a person; names no org, and of checkpoints nothing but ids
	Harmless   bool   // every checkpoint can still be used
}

// StoreRepaired is what a repair did.
type StoreRepaired struct {
	Done      []string       // for a person, a line each, in the words of StoreProblem.What
	Remaining []StoreProblem // what could not be mended
}

// StoreSwept is what a garbage collection freed, or would free.
type StoreSwept struct {
	Packs       int   // objects of which nothing was needed any more
	Bytes       int64 // in them
	Checkpoints int   // deleted or broken off, of which nothing is left now
	Expired     int   // writers and readers that had gone without a word
	Unknown     int   // objects that do not have a name of the store's: left alone
}
