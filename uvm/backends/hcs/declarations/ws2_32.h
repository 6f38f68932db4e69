/* ws2_32.dll (winsock2.h): sockets for a standard library without AF_HYPERV, and polling of many sockets. */
SOCKET WINAPI accept(SOCKET s, struct sockaddr *addr, int *addrlen);
int WINAPI bind(SOCKET s, const struct sockaddr *name, int namelen);
int WINAPI WSAPoll(WSAPOLLFD *fdArray, ULONG fds, INT timeout);
