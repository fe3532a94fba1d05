"use strict";
// A value as a cost, lower is better.
const costOf = (better, value) => value === undefined || value === null ? null : better === "higher" ? -value : value;

// Rows sorted by their keys (numbers or texts), the smallest first or last; rows without a key are always last.
const ranked = (rows, keyOf, backwards) => rows.map((row, place) => ({ row, place, key: keyOf(row) })).sort((a, b) => {
  if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
  const order = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
  return (backwards ? -order : order) || a.place - b.place;
}).map(entry => entry.row);

// The value of aria-sort for a column.
const direction = (better, backwards) => (better === "higher") !== backwards ? "descending" : "ascending";
