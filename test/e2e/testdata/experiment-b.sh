#!/bin/bash
echo "experiment b sees $(cat data.txt)"
echo b >result.txt
