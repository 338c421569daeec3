"""`kvray watch`: measures one configuration again and again, and tells when it has become worse."""
